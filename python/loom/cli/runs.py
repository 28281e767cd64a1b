"""``loom runs``: what became of each root event, and of all that followed from it."""

import sys
from typing import Any

from loom.cli.asked import Where
from loom.cli.show import (
    end_with,
    print_json,
    print_table,
    printable,
    short_ids,
    show_time,
    show_times,
)
from loom.node.asking import RUN_PARTS, run, runs
from loom.node.looking import open_view, tell_stop


def show_runs(where: Where, *, limit: int, state: str | None, as_json: bool) -> int:
    """Print the newest runs, the newest last; return the exit code."""
    if where.node is not None:
        found = where.collect("runs", limit=limit, state=state)
        return _show_runs(found, where, state, as_json=as_json)
    with open_view(where.place) as looking:
        looking.catch_up()
        if looking.is_empty:
            sys.stderr.write(f"nothing was logged yet in {looking.place.data}\n")
        else:
            _show_runs(runs(looking, limit, state), where, state, as_json=as_json)
        return tell_stop(looking)
    return 0


def _show_runs(
    found: list[dict[str, Any]], where: Where, state: str | None, *, as_json: bool
) -> int:
    if as_json:
        for told in found:
            print_json(told)
    elif found:
        _print_runs(found, where.again)
    else:
        sys.stderr.write("there is no such run\n" if state else "nothing belongs to a run\n")
    return 0


def show_run(where: Where, given: str, *, as_json: bool) -> int:
    """Print one run: its sums, its agents, its calls, its errors; return the exit code."""
    if where.node is not None:
        _show_run(where.collect("runs", run=given)[0], as_json=as_json)
        return 0
    with open_view(where.place) as looking:
        looking.catch_up()
        told = run(looking, given)
        if told is None:
            sys.stderr.write(f"nothing was logged yet in {looking.place.data}\n")
        else:
            _show_run(told, as_json=as_json)
        return tell_stop(looking)
    return 0


def _show_run(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
    else:
        _print_run(told, {name: told[name] for name in RUN_PARTS})


def _print_runs(found: list[dict[str, Any]], again: str) -> None:
    columns = ["run", "root", "started", "took", "state", "events", "calls", "errors"]
    if any(map(_cost, found)):
        columns.append("cost")
    times = show_times([run["started"] for run in found])
    rows = [
        [
            run["run"],
            short_ids(_root(run)),
            started,
            _took(run["seconds"]),
            run["state"],
            str(run["events"]),
            str(run["calls"]),
            str(run["errors"]),
            _cost(run),
        ][: len(columns)]
        for run, started in zip(found, times, strict=True)
    ]
    print_table(columns, rows, ids="run", texts=["root"])
    end_with(
        "`loom runs show RUN`, `loom replay RUN` and `loom logs --run RUN` look into one", again
    )


def _print_run(told: dict[str, Any], parts: dict[str, list[dict[str, Any]]]) -> None:
    at = show_time(told["started"])
    sums = f"{told['events']} events, {told['turns']} turns, {told['calls']} calls, "
    sums += f"{told['requests']} requests, {told['errors']} errors"
    for name, value in (
        ("run", told["run"]),
        ("root", _root_and_sender(told)),
        ("state", f"{told['state']}, {at}, took {_took(told['seconds'])}"),
        ("sums", sums),
        ("cost", _cost(told)),
    ):
        if value:
            sys.stdout.write(f"{name:<6} {value}\n")
    for title, rows in parts.items():
        if rows:
            sys.stdout.write(f"\n{title}\n")
            print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def _root(told: dict[str, Any]) -> str:
    """What began a run: the topic of its first event, when there was one and it was logged."""
    if told["root"] is not None:
        return str(told["root"])
    return "a call" if told["calls"] and not told["events"] else "not logged"


def _root_and_sender(told: dict[str, Any]) -> str:
    of = f" of {printable(told['agent'])}" if told["agent"] else ""
    return printable(_root(told)) + of


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return "" if value is None else str(value)


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _cost(run: dict[str, Any]) -> str:
    tokens = run["input_tokens"] + run["output_tokens"]
    parts = [f"{tokens:,} tokens"] if tokens else []
    if run["cost"]:
        parts.append(f"{run['cost']:.4f}")
    return ", ".join(parts)
