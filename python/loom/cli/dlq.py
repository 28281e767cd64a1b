"""``loom dlq``: events that were given up, and how they come back."""

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from loom.cli.alone import alone
from loom.cli.asked import Where, at_node, collected, control
from loom.cli.show import end_with, print_json, print_table, printable, show_times
from loom.codec import decode
from loom.envelope import Receipt
from loom.errors import InvalidParams, LoomError
from loom.node.asking import OPEN, dead_letters, letter, letter_id, open_letter
from loom.node.looking import as_raw, open_view, tell_stop
from loom.node.place import Place

if TYPE_CHECKING:
    from loom.context import Context

_REDRIVE: Final = "loom.dlq"  # the session that redrives
_STOP: Final = "stop the app that has it open; one engine alone publishes a dead letter anew"


def show_dead(where: Where, *, redriven: bool, limit: int, as_json: bool) -> int:
    """Print dead letters, the newest last; return the exit code."""
    if where.node is not None:
        found = where.collect("dead.list", redriven=redriven, limit=limit)
        return _show_dead(found, where, as_json=as_json)
    with open_view(where.place) as looking:
        looking.catch_up()
        found = dead_letters(looking, redriven=redriven, limit=limit)
        _show_dead(found, where, as_json=as_json)
        return tell_stop(looking)
    return 0


def _show_dead(found: list[dict[str, Any]], where: Where, *, as_json: bool) -> int:
    if as_json:
        for letter in found:
            print_json(letter)
    elif found:
        _print(found, where.again)
    else:
        sys.stderr.write("no event was given up\n")
    return 0


def show_letter(where: Where, given: str, *, as_json: bool) -> int:
    """Print one dead letter: what it was, why it died, and what led to it; return the exit code."""
    if where.node is not None:
        _show_letter(where.ask("dead.show", id=given), as_json=as_json)
        return 0
    with open_view(where.place) as looking:
        looking.catch_up()
        _show_letter(letter(looking, given), as_json=as_json)
        return tell_stop(looking)
    return 0


def _show_letter(told: dict[str, Any], *, as_json: bool) -> None:
    event: dict[str, Any] = told.pop("event")
    if as_json:
        chain = told.pop("chain")
        print_json({**told, "data": as_raw(event) if event else None, "chain": chain})
        return
    for name in ("id", "topic", "agent", "attempts", "error", "position", "run_id"):
        sys.stdout.write(f"{name:<9} {printable(str(told[name]))}\n")
    if told["redriven"]:
        sys.stdout.write("redriven  yes\n")
    if event:
        size = f"{event['bytes']:,} bytes"
        data = event["data"]
        sys.stdout.write(f"data      {size if data is None else printable(data)}\n")
    sys.stdout.write("\nhow it came about\n")
    for step in told["chain"]:
        at = time.strftime("%H:%M:%S", time.localtime(step["time"]))
        sys.stdout.write(f"  {at} {printable(step['topic'])} ← {printable(step['agent'])}\n")


def redrive(
    where: Where,
    letters: list[str],
    *,
    every: bool,
    payload: str | None,
    as_json: bool,
) -> int:
    """Publish dead letters anew, each to the agent that gave it up; return the exit code.

    Raises:
        InvalidParams: no letter was named, or the payload is no JSON or for several letters.
        NotFound: there is no such letter.
        Conflict: an engine has the log open, or a letter was published anew already.
    """
    if bool(letters) == every:
        raise InvalidParams(
            "no dead letter was named" if not every else "--all takes no ids",
            field="id",
            hint="give ids as `loom dlq list` shows them, or --all",
        )
    if payload is not None:
        _check_payload(payload, letters)
    if where.node is not None:
        return _redrive_at_node(where, letters, every=every, payload=payload, as_json=as_json)
    with open_view(where.place) as looking:
        looking.catch_up()
        if every:
            sql = f"SELECT * FROM dead_letters WHERE {OPEN} ORDER BY n"  # noqa: S608
            wanted = [] if looking.is_empty else looking.rows(sql)
        else:
            wanted = [open_letter(looking, letter) for letter in dict.fromkeys(letters)]
        place, code = looking.place, tell_stop(looking)
    if not wanted:
        sys.stderr.write("no event was given up\n")
        return code
    sent = asyncio.run(_redrive(place, wanted, payload))
    for row, receipt in zip(wanted, sent, strict=True):
        if as_json:
            print_json({"id": letter_id(row), "event_id": receipt.id, "position": receipt.position})
        else:
            topic, agent = printable(row["topic"] or ""), printable(row["name"] or "")
            sys.stdout.write(f"{letter_id(row)} → {receipt.id}  {topic} for {agent}\n")
    return code


def _redrive_at_node(
    where: Where, letters: list[str], *, every: bool, payload: str | None, as_json: bool
) -> int:
    async def each(ctx: "Context[Any]") -> list[dict[str, Any]]:
        ids = dict.fromkeys(letters)
        if every:
            ids = [one["id"] for one in await collected(ctx, "dead.list", {"limit": 0})]
        data = None if payload is None else decode(payload.encode())
        more = {} if payload is None else {"data": data, "replace": True}
        return [await control(ctx, "dead.redrive", {"id": one, **more}) for one in ids]

    sent = asyncio.run(at_node(where, each))
    if not sent:
        sys.stderr.write("no event was given up\n")
    for told in sent:
        if as_json:
            print_json({name: told[name] for name in ("id", "event_id", "position")})
        else:
            topic, agent = printable(told["topic"] or ""), printable(told["agent"] or "")
            sys.stdout.write(f"{told['id']} → {told['event_id']}  {topic} for {agent}\n")
    return 0


def _check_payload(payload: str, letters: list[str]) -> None:
    if len(letters) != 1:
        raise InvalidParams(
            "--payload is for one dead letter", field="payload", hint="redrive them one by one"
        )
    try:
        decode(payload.encode())
    except (LoomError, ValueError) as error:
        raise InvalidParams(
            f"--payload is no JSON: {error}", field="payload", hint="quote it for your shell"
        ) from None


async def _redrive(place: Place, wanted: list[Any], payload: str | None) -> list[Receipt]:
    data = None if payload is None else payload.encode()
    async with alone(place, _REDRIVE, _STOP) as (_, link):
        return [await link.redrive(row["consumer"], row["n"], data) for row in wanted]


def _print(found: list[dict[str, Any]], again: str) -> None:
    times = show_times([letter["time"] for letter in found])
    rows = [
        [
            letter["id"],
            died,
            letter["agent"] or "",
            letter["topic"] or "",
            str(letter["attempts"]),
            letter["error"],
        ]
        for letter, died in zip(found, times, strict=True)
    ]
    print_table(
        ["id", "died", "agent", "topic", "attempts", "error"], rows, texts=["error", "topic"]
    )
    if not all(letter["redriven"] for letter in found):
        end_with(
            "`loom dlq show ID` shows its data; `loom dlq redrive ID`, with the app stopped or "
            "at a node, publishes it anew",
            again,
        )
