"""``loom effects``: what became of calls that change something, and the last word on it."""

import asyncio
import sys
from typing import Any, Final

from loom.cli.alone import alone
from loom.cli.looking import Looking, open_view, tell_stop
from loom.cli.place import Place
from loom.cli.show import (
    end_with,
    print_json,
    print_table,
    printable,
    show_time,
    show_times,
)
from loom.codec import decode, encode
from loom.errors import InvalidParams, LoomError, NotFound

_SETTLES: Final = "loom.effects"  # the session that settles
_STOP: Final = "stop the app that has it open, or settle it there: app.effects.resolve(…)"
_SHORT: Final = 4  # characters that may stand for an id
_NOTED: Final = "the engine ended before its outcome"
_OPEN: Final = ("planned", "dispatched")


def show_effects(
    data: str | None, namespace: str | None, *, unknown: bool, limit: int, as_json: bool
) -> int:
    """Print effects, the newest last; return the exit code."""
    with open_view(data, namespace) as looking:
        looking.catch_up()
        found: list[dict[str, Any]] = []
        if not looking.is_empty:
            states = ("unknown",) if looking.is_operating else ("unknown", *_OPEN)
            where = f"state IN ({', '.join('?' * len(states))})" if unknown else "1"
            sql = f"SELECT * FROM effects WHERE {where} ORDER BY n DESC LIMIT ?"  # noqa: S608
            values = (*(states if unknown else ()), limit or -1)
            running = looking.is_operating
            found = [_told(row, running=running) for row in looking.rows(sql, values)][::-1]
        if as_json:
            for effect in found:
                print_json(effect)
        elif found:
            _print(found, data)
        else:
            sys.stderr.write("no effect is unknown\n" if unknown else "there are no effects\n")
        return tell_stop(looking)
    return 0


def show_effect(data: str | None, namespace: str | None, effect: str, *, as_json: bool) -> int:
    """Print what the log knows of one effect; return the exit code."""
    with open_view(data, namespace) as looking:
        looking.catch_up()
        told = _told(find_effect(looking, effect), running=looking.is_operating)
        sql = "SELECT * FROM calls WHERE effect = ? ORDER BY n DESC LIMIT 1"
        call = next(iter(looking.rows(sql, (told["id"],))), None)
        if call is not None:
            names = ("provider", "code", "message", "arguments", "result")
            told |= {name: call[name] for name in names}
            told |= {"thread_id": call["thread"], "event_id": call["event"]}
        if as_json:
            print_json(told)
        else:
            for name, value in told.items():
                if value is not None:
                    shown = show_time(value) if name in {"intended", "since"} else str(value)
                    sys.stdout.write(f"{name:<11}{printable(shown)}\n")
        return tell_stop(looking)
    return 0


def resolve_effect(
    data: str | None,
    namespace: str | None,
    effect: str,
    *,
    done: bool,
    result: str | None,
    note: str,
    as_json: bool,
) -> int:
    """Settle an effect that nobody knows of; return the exit code.

    Raises:
        InvalidParams: the result is no JSON, or of what was not done.
        NotFound: there is no such effect.
        Conflict: an engine has the log open, or the effect is not unknown.
    """
    payload = _result(result) if done else None
    if not done and result is not None:
        raise InvalidParams(
            "what was not done has no result", field="result", hint="leave --result out"
        )
    with open_view(data, namespace) as looking:
        looking.catch_up()
        found = find_effect(looking, effect)
        place, code = looking.place, tell_stop(looking)
    id_ = found["effect"]
    asyncio.run(_resolve(place, id_, payload, note))
    state = "reconciled" if done else "failed"
    if as_json:
        print_json({"id": id_, "state": state})
    else:
        after = "calls with its key get this result" if done else "a call with its key does it"
        end = f"; {after}" if found["key"] else ""
        sys.stdout.write(f"{id_} is {state}{end}\n")
    return code


def _result(result: str | None) -> bytes:
    if result is None:
        return b"null"
    try:
        return encode(decode(result.encode()), "result")
    except LoomError as error:
        raise InvalidParams(
            f"--result is no JSON: {error.message}", field="result", hint="quote it for your shell"
        ) from None


async def _resolve(place: Place, effect: str, result: bytes | None, note: str) -> None:
    async with alone(place, _SETTLES, _STOP) as (engine, link):
        await engine.ledger(link, place.namespace).settle(effect, result, note)


def find_effect(looking: Looking, given: str) -> Any:
    """Return the row of an effect by its id, or by how that begins or ends.

    Raises:
        InvalidParams: several effects are called so.
        NotFound: there is no such effect.
    """
    short = given.removeprefix("…").lower()
    rows: list[Any] = []
    if not looking.is_empty:
        rows = looking.rows("SELECT * FROM effects WHERE effect = ?", (short,))
        if not rows and len(short) >= _SHORT:
            size = len(short)
            sql = (
                "SELECT * FROM effects WHERE substr(effect, 1, ?) = ?"
                " OR substr(effect, -?) = ? ORDER BY n DESC LIMIT 4"
            )
            rows = looking.rows(sql, (size, short, size, short))
    if len(rows) > 1:
        raise InvalidParams(
            f"several effects begin or end with {given!r}",
            field="id",
            hint=f"one of: {', '.join(row['effect'] for row in rows)}",
        )
    if not rows:
        raise NotFound(
            f"there is no effect {given!r} in the log",
            field="id",
            hint="`loom effects list --limit 0` shows all there are",
        )
    return rows[0]


def _told(row: Any, *, running: bool) -> dict[str, Any]:
    # What is open in the log of an engine that is gone will never have an outcome.
    orphan = row["state"] in _OPEN and not running
    return {
        "id": row["effect"],
        "state": "unknown" if orphan else row["state"],
        "capability": row["name"],
        "version": row["version"],
        "effect": row["class"],
        "key": row["key"],
        "caller": row["caller"],
        "attempts": row["attempts"],
        "calls": row["calls"],
        "run_id": row["run"],
        "n": row["n"],
        "intended": row["planned_ms"] / 1000,
        "since": (row["ended_ms"] or row["planned_ms"]) / 1000,
        "by": row["settled_by"],
        "note": _NOTED if orphan else row["note"],
    }


def _print(found: list[dict[str, Any]], data: str | None) -> None:
    names = ("id", "state", "capability", "key")
    times = show_times([effect["since"] for effect in found])
    rows = [
        [
            *("" if effect[name] is None else str(effect[name]) for name in names),
            since,
            effect["note"] or "",
        ]
        for effect, since in zip(found, times, strict=True)
    ]
    columns = [*names, "since", "note"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows, ids="id", texts=["note", "key"])
    if any(effect["state"] == "unknown" for effect in found):
        end_with(
            "`loom effects show ID` shows what was asked; "
            "`loom effects resolve ID --done` or `--failed` says what became of it",
            data,
        )
