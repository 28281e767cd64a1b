"""``loom runs``: what became of each root event, and of all that followed from it."""

import sqlite3
import sys
from typing import Any

from loom.cli.looking import Looking, open_view, tell_stop
from loom.cli.show import (
    end_with,
    print_json,
    print_table,
    printable,
    short_ids,
    show_time,
    show_times,
)


def show_runs(
    data: str | None, namespace: str | None, *, limit: int, state: str | None, as_json: bool
) -> int:
    """Print the newest runs, the newest last; return the exit code."""
    with open_view(data, namespace) as looking:
        looking.catch_up()
        if looking.is_empty:
            sys.stderr.write(f"nothing was logged yet in {looking.place.data}\n")
            return tell_stop(looking)
        found = _runs(looking, limit, state)
        if as_json:
            for run in found:
                print_json(run)
        elif found:
            _print_runs(found, data)
        else:
            sys.stderr.write("there is no such run\n" if state else "nothing belongs to a run\n")
        return tell_stop(looking)
    return 0


def show_run(data: str | None, namespace: str | None, run: str, *, as_json: bool) -> int:
    """Print one run: its sums, its agents, its calls, its errors; return the exit code."""
    with open_view(data, namespace) as looking:
        looking.catch_up()
        known = "" if looking.is_empty else looking.resolve("run", run)
        if not known:
            sys.stderr.write(f"nothing was logged yet in {looking.place.data}\n")
            return tell_stop(looking)
        sql = "SELECT * FROM run_states WHERE run = ?"
        (row,) = looking.rows(sql, (known,))
        told = _told(row, is_operating=looking.is_operating)
        parts = {name: looking.rows(sql, (known,)) for name, sql in _PARTS.items()}
        if as_json:
            rows = {name: [dict(row) for row in rows] for name, rows in parts.items()}
            print_json({**told, **rows})
        else:
            _print_run(told, parts)
        return tell_stop(looking)
    return 0


_PARTS = {
    "agents": "SELECT agent, count(*) AS turns, sum(code <> 'OK') AS failed, "
    "max(attempt) AS attempts FROM turns WHERE run = ? GROUP BY agent ORDER BY min(n)",
    "calls": "SELECT name, kind, count(*) AS calls, sum(code <> 'OK') AS failed, "
    "sum(max(attempts - 1, 0)) AS retries, sum(micros) / 1000.0 AS ms FROM calls WHERE run = ? "
    "GROUP BY kind, name ORDER BY min(n)",
    "costs": "SELECT name, count(*) AS calls, sum(input_tokens) AS input_tokens, "
    "sum(output_tokens) AS output_tokens, sum(cost) AS cost FROM costs WHERE run = ? "
    "GROUP BY name ORDER BY min(n)",
    "errors": "SELECT code, agent, name, message, max(records, events) AS times FROM errors "
    "WHERE run = ? ORDER BY n LIMIT 100",
}


def _runs(looking: Looking, limit: int, state: str | None) -> list[dict[str, Any]]:
    operating = looking.is_operating
    rows = looking.db.execute("SELECT * FROM run_states ORDER BY first_n DESC")
    found: list[dict[str, Any]] = []
    for row in rows:
        told = _told(row, is_operating=operating)
        if state in {None, told["state"]}:
            found.append(told)
        if limit and len(found) >= limit:
            break
    rows.close()
    return found[::-1]


def _told(row: sqlite3.Row, *, is_operating: bool) -> dict[str, Any]:
    state = row["state"]
    if state == "running" and not is_operating:
        state = "incomplete"  # the process that ran it is gone
    return {
        "run": row["run"],
        "root": row["root"],
        "agent": row["agent"],
        "thread_id": row["thread"],
        "state": state,
        "started": row["started_ms"] / 1000,
        "seconds": (row["last_ms"] - row["started_ms"]) / 1000,
        "events": row["events"],
        "turns": row["turns"],
        "calls": row["calls"],
        "requests": row["requests"],
        "errors": row["errors"],
        "input_tokens": row["input_tokens"],
        "output_tokens": row["output_tokens"],
        "cost": row["cost"],
    }


def _print_runs(found: list[dict[str, Any]], data: str | None) -> None:
    columns = ["run", "root", "started", "took", "state", "events", "calls", "errors"]
    if any(map(_cost, found)):
        columns.append("cost")
    times = show_times([run["started"] for run in found])
    rows = [
        [
            run["run"],
            short_ids(run["root"] or "?"),
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
        "`loom runs show RUN`, `loom replay RUN` and `loom logs --run RUN` look into one", data
    )


def _print_run(told: dict[str, Any], parts: dict[str, list[sqlite3.Row]]) -> None:
    at = show_time(told["started"])
    sums = f"{told['events']} events, {told['turns']} turns, {told['calls']} calls, "
    sums += f"{told['requests']} requests, {told['errors']} errors"
    for name, value in (
        ("run", told["run"]),
        ("root", f"{printable(told['root'] or '?')} of {printable(told['agent'] or '?')}"),
        ("state", f"{told['state']}, {at}, took {_took(told['seconds'])}"),
        ("sums", sums),
        ("cost", _cost(told)),
    ):
        if value:
            sys.stdout.write(f"{name:<6} {value}\n")
    for title, rows in parts.items():
        if rows:
            sys.stdout.write(f"\n{title}\n")
            print_table(rows[0].keys(), [[_cell(value) for value in row] for row in rows])


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
