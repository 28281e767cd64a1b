"""``loom effects``: what became of calls that change something, and the last word on it."""

import asyncio
import sys
from typing import Any, Final

from loom.cli.alone import alone
from loom.cli.asked import Where
from loom.cli.show import (
    end_with,
    print_json,
    print_table,
    printable,
    show_time,
    show_times,
)
from loom.codec import decode, encode
from loom.errors import InvalidParams, LoomError
from loom.node.asking import effect, effects, find_effect
from loom.node.looking import open_view, tell_stop
from loom.node.place import Place

_SETTLES: Final = "loom.effects"  # the session that settles
_STOP: Final = "stop the app that has it open, or settle it there: app.effects.resolve(…)"


def show_effects(where: Where, *, unknown: bool, limit: int, as_json: bool) -> int:
    """Print effects, the newest last; return the exit code."""
    if where.node is not None:
        found = where.collect("effects.list", unknown=unknown, limit=limit)
        return _show_effects(found, where, unknown=unknown, as_json=as_json)
    with open_view(where.place) as looking:
        looking.catch_up()
        found = effects(looking, unknown=unknown, limit=limit)
        _show_effects(found, where, unknown=unknown, as_json=as_json)
        return tell_stop(looking)
    return 0


def _show_effects(
    found: list[dict[str, Any]], where: Where, *, unknown: bool, as_json: bool
) -> int:
    if as_json:
        for told in found:
            print_json(told)
    elif found:
        _print(found, where.again)
    else:
        sys.stderr.write("no effect is unknown\n" if unknown else "there are no effects\n")
    return 0


def show_effect(where: Where, given: str, *, as_json: bool) -> int:
    """Print what the log knows of one effect; return the exit code."""
    if where.node is not None:
        _show_effect(where.ask("effects.show", id=given), as_json=as_json)
        return 0
    with open_view(where.place) as looking:
        looking.catch_up()
        _show_effect(effect(looking, given), as_json=as_json)
        return tell_stop(looking)
    return 0


def _show_effect(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    for name, value in told.items():
        if value is not None:
            shown = show_time(value) if name in {"intended", "since"} else str(value)
            sys.stdout.write(f"{name:<11}{printable(shown)}\n")


def resolve_effect(
    where: Where,
    given: str,
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
    if where.node is not None:
        value = None if payload is None else decode(payload)
        told = where.ask("effects.resolve", id=given, done=done, result=value, note=note)
        id_, key, code = told["id"], told["key"], 0
    else:
        with open_view(where.place) as looking:
            looking.catch_up()
            found = find_effect(looking, given)
            place, code = looking.place, tell_stop(looking)
        id_, key = found["effect"], found["key"]
        asyncio.run(_resolve(place, id_, payload, note))
    state = "reconciled" if done else "failed"
    if as_json:
        print_json({"id": id_, "state": state})
    else:
        after = "calls with its key get this result" if done else "a call with its key does it"
        end = f"; {after}" if key else ""
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


def _print(found: list[dict[str, Any]], again: str) -> None:
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
            again,
        )
