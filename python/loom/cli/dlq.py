"""``loom dlq``: events that were given up, and how they come back."""

import asyncio
import sys
import time
from typing import Any, Final

from loom.cli.alone import alone
from loom.cli.looking import Looking, as_raw, open_view, tell_stop
from loom.cli.place import Place
from loom.cli.show import end_with, print_json, print_table, printable, show_times
from loom.codec import decode
from loom.envelope import Receipt
from loom.errors import Conflict, InvalidParams, LoomError, NotFound

_REDRIVE: Final = "loom.dlq"  # the session that redrives
_STOP: Final = "stop the app that has it open; one engine alone publishes a dead letter anew"
_CHAIN: Final = 100  # events of a chain that are shown
_OPEN: Final = "redriven_n IS NULL"


def show_dead(
    data: str | None, namespace: str | None, *, redriven: bool, limit: int, as_json: bool
) -> int:
    """Print dead letters, the newest last; return the exit code."""
    with open_view(data, namespace) as looking:
        looking.catch_up()
        found: list[dict[str, Any]] = []
        if not looking.is_empty:
            where = "1" if redriven else _OPEN
            sql = f"SELECT * FROM dead_letters WHERE {where} ORDER BY time_ms DESC, n DESC LIMIT ?"  # noqa: S608
            found = [_told(row) for row in looking.rows(sql, (limit or -1,))][::-1]
        if as_json:
            for letter in found:
                print_json(letter)
        elif found:
            _print(found, data)
        else:
            sys.stderr.write("no event was given up\n")
        return tell_stop(looking)
    return 0


def show_letter(data: str | None, namespace: str | None, letter: str, *, as_json: bool) -> int:
    """Print one dead letter: what it was, why it died, and what led to it; return the exit code."""
    with open_view(data, namespace) as looking:
        looking.catch_up()
        told = _told(find_letter(looking, letter))
        events = looking.rows("SELECT * FROM events WHERE n = ?", (told["n"],))
        chain = _chain(looking, told["event_id"])
        payload = as_raw(events[0]) if events else None
        if as_json:
            print_json({**told, "data": payload, "chain": chain})
            return tell_stop(looking)
        for name in ("id", "topic", "agent", "attempts", "error", "position", "run_id"):
            sys.stdout.write(f"{name:<9} {printable(str(told[name]))}\n")
        if told["redriven"]:
            sys.stdout.write("redriven  yes\n")
        if events:
            data_of = events[0]["data"]
            size = f"{events[0]['bytes']:,} bytes"
            sys.stdout.write(f"data      {size if data_of is None else printable(data_of)}\n")
        sys.stdout.write("\nhow it came about\n")
        for step in chain:
            at = time.strftime("%H:%M:%S", time.localtime(step["time"]))
            sys.stdout.write(f"  {at} {printable(step['topic'])} ← {printable(step['agent'])}\n")
        return tell_stop(looking)
    return 0


def redrive(
    data: str | None,
    namespace: str | None,
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
    with open_view(data, namespace) as looking:
        looking.catch_up()
        if every:
            sql = f"SELECT * FROM dead_letters WHERE {_OPEN} ORDER BY n"  # noqa: S608
            wanted = [] if looking.is_empty else looking.rows(sql)
        else:
            wanted = [find_letter(looking, letter) for letter in dict.fromkeys(letters)]
        place, code = looking.place, tell_stop(looking)
    for row in wanted:
        if row["redriven_n"] is not None:
            raise Conflict(
                f"{_id(row)} was published anew already",
                field="id",
                hint="`loom dlq list` shows those that wait",
            )
    if not wanted:
        sys.stderr.write("no event was given up\n")
        return code
    sent = asyncio.run(_redrive(place, wanted, payload))
    for row, receipt in zip(wanted, sent, strict=True):
        if as_json:
            print_json({"id": _id(row), "event_id": receipt.id, "position": receipt.position})
        else:
            topic, agent = printable(row["topic"] or ""), printable(row["name"] or "")
            sys.stdout.write(f"{_id(row)} → {receipt.id}  {topic} for {agent}\n")
    return code


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


def find_letter(looking: Looking, letter: str) -> Any:
    """Return the row of a dead letter by its id, ``CONSUMER.POSITION`` as the list shows it.

    Raises:
        InvalidParams: it is no such id.
        NotFound: there is no such letter; the hint names those there are.
    """
    consumer, dot, n = letter.partition(".")
    if not (dot and consumer.isdecimal() and n.isdecimal()):
        raise InvalidParams(
            f"{letter!r} is no id of a dead letter",
            field="id",
            hint="take one of `loom dlq list`, such as 1.42",
        )
    if not looking.is_empty:
        sql = "SELECT * FROM dead_letters WHERE consumer = ? AND n = ?"
        for row in looking.rows(sql, (int(consumer), int(n))):
            return row
        newest = f"SELECT * FROM dead_letters WHERE {_OPEN} ORDER BY n DESC LIMIT 3"  # noqa: S608
        there = [_id(row) for row in looking.rows(newest)]
    else:
        there = []
    raise NotFound(
        f"there is no dead letter {letter}",
        field="id",
        hint=f"there is: {', '.join(there)}" if there else "no event was given up",
    )


def _id(row: Any) -> str:
    return f"{row['consumer']}.{row['n']}"


def _told(row: Any) -> dict[str, Any]:
    message = row["message"] or ""
    return {
        "id": _id(row),
        "n": row["n"],
        "agent": row["name"],
        "event_id": row["event"],
        "topic": row["topic"],
        "run_id": row["run"],
        "thread_id": row["thread"],
        "attempts": row["attempt"],
        "code": row["code"],
        "message": message,
        "error": f"{row['code']}: {message}" if row["code"] else message or "given up by its agent",
        "time": row["time_ms"] / 1000,
        "redriven": row["redriven_n"] is not None,
        "position": row["n"],
    }


def _print(found: list[dict[str, Any]], data: str | None) -> None:
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
            "`loom dlq show ID` shows its data; `loom dlq redrive ID`, with the app stopped, "
            "publishes it anew",
            data,
        )


def _chain(looking: Looking, event: str | None) -> list[dict[str, Any]]:
    """Return what led to an event, the root first."""
    chain: list[dict[str, Any]] = []
    while event is not None and len(chain) < _CHAIN:
        rows = looking.rows("SELECT * FROM events WHERE id = ? LIMIT 1", (event,))
        if not rows:
            break
        row = rows[0]
        chain.append(
            {
                "id": row["id"],
                "topic": row["topic"],
                "agent": row["agent"],
                "time": row["time_ms"] / 1000,
            }
        )
        event = row["causation"]
    return chain[::-1]
