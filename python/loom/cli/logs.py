"""``loom logs``: what the log has of events, errors and itself, line by line."""

import asyncio
import os
import shutil
import sqlite3
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from loom.cli.asked import Where, at_node, streamed
from loom.cli.show import of_engine, print_json, printable, short_id, short_ids
from loom.codec import decode
from loom.errors import LoomError
from loom.node.asking import LINES, Checks, Wanted, checked
from loom.node.looking import Looking, as_raw, open_view, tell_stop

if TYPE_CHECKING:
    from loom.context import Context

_AT_ONCE: Final = 1000  # rows whose columns are measured together
_GIVES_WAY: Final = 10  # steps of priority
_PAUSE: Final = 0.2  # seconds between two looks with --follow
_WAIT: Final = 20.0  # seconds that a node is asked to wait for new lines
_MOST: Final = (
    23,
    8,
    8,
    24,
    40,
)  # characters that a column grows to: when, id, level, agent, topic
_GRAVE: Final = frozenset({"warning", "error", "critical"})
_LONGEST: Final = 1000  # characters that are shown of a grave one
_MARGIN: Final = " " * 13  # before its further lines
_STYLES: Final = {
    "debug": "2",
    "warning": "33",
    "error": "31",
    "critical": "1;31",
}


def show_logs(where: Where, wanted: Wanted, *, follow: bool, as_json: bool) -> int:
    """Print what is wanted, oldest first; return the exit code."""
    checks = checked(wanted)
    show = _json_lines if as_json else TextLines(is_terminal=sys.stdout.isatty()).show
    if where.node is not None:
        return asyncio.run(at_node(where, lambda ctx: _of_node(ctx, wanted, show, follow=follow)))
    with open_view(where.place) as looking:
        looking.catch_up()
        last = -1
        if not looking.is_empty:
            last = _print_first(looking, wanted, checks, show, follow=follow)
        elif not follow:
            sys.stderr.write(f"nothing was logged yet in {looking.place.data}\n")
        if follow:
            os.nice(_GIVES_WAY)  # whoever is followed goes first
        while follow and not looking.stop.is_set() and looking.stopped is None:
            sys.stdout.flush()
            looking.stop.wait(_PAUSE)
            looking.catch_up()
            if not looking.is_empty:
                last = _print_new(looking, wanted, checks, show, last)
        sys.stdout.flush()
        return tell_stop(looking)
    return 0


async def _of_node(
    ctx: "Context[Any]",
    wanted: Wanted,
    show: Callable[[Sequence[Any]], None],
    *,
    follow: bool,
) -> int:
    args, found, last = asdict(wanted), 0, -1
    more = {"limit": wanted.limit + 1} if wanted.limit else {}
    async with streamed(ctx, "logs", {**args, **more}) as items:
        async for rows in _portions(items, wanted.limit + 1 if wanted.limit else _AT_ONCE):
            if 0 < wanted.limit < len(rows):
                sys.stderr.write(f"… the newest {wanted.limit}; --limit 0 shows all\n")
                del rows[0]
            show(rows)
            found, last = found + len(rows), rows[-1]["n"]
    if not found and not follow:
        sys.stderr.write("nothing in the log fits that\n")
    while follow:
        sys.stdout.flush()
        new = {**args, "limit": 0, "after": last, "wait": _WAIT}
        async with streamed(ctx, "logs", new) as items:
            async for rows in _portions(items, _AT_ONCE):
                last = rows[-1]["n"]
                show([row for row in rows if row["type"] != "end"])
                sys.stdout.flush()
    return 0


async def _portions(items: AsyncIterator[Any], most: int) -> AsyncIterator[list[Any]]:
    """Give what comes, so many at a time."""
    rows: list[Any] = []
    async for item in items:
        rows.append(item)
        if len(rows) == most:
            yield rows
            rows = []
    if rows:
        yield rows


def _print_first(
    looking: Looking,
    wanted: Wanted,
    checks: Checks,
    show: Callable[[Sequence[sqlite3.Row]], None],
    *,
    follow: bool,
) -> int:
    (newest,) = looking.rows("SELECT value FROM meta WHERE key = 'n'")[0]
    where, values = checks.where(looking, wanted)
    if wanted.limit:
        sql = f"SELECT * FROM ({LINES}) WHERE {where} ORDER BY n DESC LIMIT ?"  # noqa: S608
        rows = looking.rows(sql, (*values, wanted.limit + 1))
        if len(rows) > wanted.limit:
            sys.stderr.write(f"… the newest {wanted.limit}; --limit 0 shows all\n")
        show(rows[: wanted.limit][::-1])
        found = bool(rows)
    else:
        found = False
        sql = f"SELECT * FROM ({LINES}) WHERE {where} ORDER BY n"  # noqa: S608
        with closing(looking.db.execute(sql, values)) as cursor:
            while rows := cursor.fetchmany(_AT_ONCE):
                show(rows)
                found = True
    if not found and not follow:
        sys.stderr.write("nothing in the log fits that\n")
    return newest


def _print_new(
    looking: Looking,
    wanted: Wanted,
    checks: Checks,
    show: Callable[[Sequence[sqlite3.Row]], None],
    last: int,
) -> int:
    (newest,) = looking.rows("SELECT value FROM meta WHERE key = 'n'")[0]
    if newest == last:
        return last
    where, values = checks.where(looking, wanted)
    sql = f"SELECT * FROM ({LINES}) WHERE n > ? AND n <= ? AND {where} ORDER BY n"  # noqa: S608
    show(looking.rows(sql, (last, newest, *values)))
    return newest


# -- as JSON --------------------------------------------------------------------------------------


def _json_lines(rows: Sequence[sqlite3.Row]) -> None:
    for row in rows:
        _json_line(row)


def _json_line(row: sqlite3.Row) -> None:
    told: dict[str, Any] = {"type": row["type"], "time": _seconds(row)}
    if row["type"] == "event":
        told |= {
            "position": row["position"],
            "id": row["id"],
            "topic": row["topic"],
            "agent": row["agent"],
            "sender": row["sender"],
            "thread_id": row["thread"],
            "run_id": row["run"],
            "correlation_id": row["correlation"],
            "causation_id": row["causation"],
            "hop": row["hop"],
            "durable": bool(row["durable"]),
            "level": row["level"],
            "code": row["code"],
            "bytes": row["bytes"],
            "data": as_raw(row),
        }
    elif row["type"] == "error":
        told |= {
            "code": row["code"],
            "message": row["data"],
            "agent": row["agent"],
            "name": row["topic"],
            "event_id": row["causation"],
            "thread_id": row["thread"],
            "run_id": row["run"],
        }
    else:
        told |= {
            "kind": row["topic"],
            "level": row["level"],
            "message": row["data"],
            "run_id": row["run"],
        }
    print_json(told)


def _seconds(row: sqlite3.Row) -> float | None:
    return None if row["time_ms"] is None else row["time_ms"] / 1000


# -- as text --------------------------------------------------------------------------------------


class TextLines:
    """Prints a line for each row: when, which, how grave, of whom, where, what.

    Columns grow as needed. An id is shown by how it ends, which stands for it in every command.
    """

    def __init__(self, *, is_terminal: bool) -> None:
        self._colours = is_terminal and not os.environ.get("NO_COLOR")
        self._width = shutil.get_terminal_size().columns if is_terminal else None
        self._day = time.strftime("%Y-%m-%d")
        self._widths = [0] * len(_MOST)

    def show(self, rows: Sequence[sqlite3.Row]) -> None:
        """Print rows, their columns below each other."""
        lines = [self._columns(row) for row in rows]
        for texts, _ in lines:
            self._widths = [
                max(width, min(len(text), most))
                for width, text, most in zip(self._widths, texts, _MOST, strict=True)
            ]
        for row, (texts, level) in zip(rows, lines, strict=True):
            self._print(texts, _said(row), level)

    def _columns(self, row: sqlite3.Row) -> tuple[list[str], str]:
        level = "" if row["level"] == "info" else row["level"]
        agent = printable(row["agent"] or "log").rpartition("/")[2]
        topic = short_ids(printable(row["topic"]))
        return [self._clock(row["time_ms"]), short_id(row["id"] or ""), level, agent, topic], level

    def _print(self, texts: list[str], said: str, level: str) -> None:
        styles = ("2", "2", _STYLES.get(level, ""), "36", "1")
        styled: list[str] = []
        used = 0
        for text, width, style in zip(texts, self._widths, styles, strict=True):
            if not width:
                continue
            cell = f"{text:<{width}} "
            used += len(cell)
            is_styled = self._colours and style and text
            styled.append(f"\x1b[{style}m{cell}\x1b[0m" if is_styled else cell)
        sys.stdout.write(f"{''.join(styled)}{self._fit(said, used, level)}".rstrip() + "\n")

    def _fit(self, said: str, used: int, level: str) -> str:
        """Return what fits on the rest of a line; of what is grave all, over more than one line."""
        if self._width is None:
            return said
        room = self._width - used
        if len(said) <= room:
            return said
        if level not in _GRAVE:
            return f"{said[: max(room - 1, 0)]}…"
        rest = textwrap.wrap(
            said[:_LONGEST], self._width, initial_indent=" " * used, subsequent_indent=_MARGIN
        )
        return "\n".join(rest)[used:]

    def _clock(self, time_ms: int | None) -> str:
        if time_ms is None:
            return " " * 12
        at = time.localtime(time_ms / 1000)
        clock = f"{time.strftime('%H:%M:%S', at)}.{time_ms % 1000:03d}"
        day = time.strftime("%Y-%m-%d", at)
        return clock if day == self._day else f"{day} {clock}"


def _as_data(text: str) -> Any:
    """Return what JSON says; None where it is none."""
    try:
        return decode(text.encode())
    except (LoomError, ValueError):
        return None


def _said(row: sqlite3.Row) -> str:
    """Return what stands at the end of a line; nothing of it can move a cursor."""
    data = row["data"]
    if row["type"] == "event":
        if data is None:
            kind = printable(row["content_type"] or "JSON")
            return f"{row['bytes']:,} bytes of {kind}" if row["bytes"] else ""
        if row["topic"].startswith("loom.") and (said := of_engine(row["topic"], _as_data(data))):
            return printable(said)
        return printable(data) if row["code"] is None else f"{row['code']} {printable(data)}"
    return printable(data) if row["code"] is None else f"{row['code']}: {printable(data)}"
