"""How the command line shows events, results and figures. Text of events is data.

It never reaches the terminal raw.
"""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loom.envelope import Event

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?( (µs|ms|s))?")
_SHORT = 8  # characters of an id that stand for it
_GAP = 2  # columns between two columns of a table
_SAID, _NAME = 24, 6  # columns that a sentence and that a name needs at least to be read
_WIDE = 1 << 14  # columns where no terminal limits them
_PREVIEW = 400  # characters of data that are looked at for one line
_DIRECTORY = "loom.directory."
_OF_BREAKER = ("ejected", "probing", "up")  # what a provider does by itself; else its agent does it
_HEALTH = {  # what is said, and how it looks
    "up": ("up again", "green"),
    "probing": ("probing", "yellow"),
    "restarting": ("restarting", "yellow"),
    "ejected": ("ejected", "red"),
    "quarantined": ("quarantined", "red"),
}
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red")


def printable(text: str) -> str:
    """Return ``text`` on one line, with control characters and other invisible ones written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any, *, indent: int = 0) -> None:
    """Print one JSON object on a line of stdout, or on many: each level indented so far."""
    text = msgspec.json.encode(value)
    if indent:
        text = msgspec.json.format(text, indent=indent)
    sys.stdout.write(text.decode() + "\n")
    sys.stdout.flush()


def show_time(at: float) -> str:
    """Return a moment, in seconds since 1970, as day and time here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def show_times(moments: Sequence[float]) -> list[str]:
    """Return moments as ``show_time`` does, without the day where all of them are of today."""
    shown = [show_time(at) for at in moments]
    today = time.strftime("%Y-%m-%d ")
    if all(at.startswith(today) for at in shown):
        return [at.removeprefix(today) for at in shown]
    return shown


def event_record(event: Event[Any]) -> dict[str, Any]:
    """Return what ``--json`` prints of an event."""
    return {
        "type": "event",
        "id": event.id,
        "topic": event.topic,
        "sender": event.sender,
        "thread_id": event.thread_id,
        "run_id": event.run_id,
        "causation_id": event.causation_id,
        "hop": event.hop,
        "time": event.time,
        "data": msgspec.Raw(event.payload) if event.content_type == "application/json" else None,
    }


class EventLines:
    """Prints one line for each event: when, where, from whom, what.

    Of the directory's book-keeping it prints changes of health only.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._colours: dict[str, str] = {}
        self._unwell: dict[tuple[str, ...], str] = {}  # how those fare that are not up

    def show(self, event: Event[Any]) -> None:
        """Print one event."""
        if event.topic.startswith(_DIRECTORY):
            self._show_health(event)
            return
        sender = event.sender.removeprefix(f"{event.namespace}/")
        colour = self._colours.setdefault(sender, _COLOURS[len(self._colours) % len(_COLOURS)])
        line = _begin(event)
        topic = short_ids(printable(event.topic))
        line.append(f"{'  ' * min(event.hop, 6)}{topic}", style="bold")
        line.append(f" ← {printable(sender)} ", style=colour)
        if event.topic.startswith("loom.") and (said := of_engine(event.topic, event.data)):
            line.append(printable(said))
        elif event.content_type == "application/json":
            line.append(printable(event.payload[:_PREVIEW].decode(errors="replace")))
        else:
            line.append(f"{len(event.payload)} bytes of {printable(event.content_type)}")
        self._console.print(line, overflow="ellipsis", no_wrap=True, soft_wrap=False)

    def _show_health(self, event: Event[Any]) -> None:
        """Print how an agent or a provider fares, if that is another way than before.

        What is offered by an agent that is restarting or in quarantine is that agent's line.
        """
        kind, _, what = event.topic.removeprefix(_DIRECTORY).partition(".")
        name, version, provider = (
            printable(str(event.data.get(part, ""))) for part in ("name", "version", "provider")
        )
        who, health = (kind, name, version, provider), event.data.get("health")
        if what != "changed":
            self._unwell.pop(who, None)
            return
        if health not in (_HEALTH if kind == "agent" else _OF_BREAKER):
            return
        if health == self._unwell.get(who, "up"):
            return
        if health == "up":
            del self._unwell[who]
        else:
            self._unwell[who] = health
        said, style = _HEALTH[health]
        line = _begin(event).append(f"agent {name} " if kind == "agent" else f"{name} ", "bold")
        line.append(said, style)
        if provider:
            line.append(f" (of {provider})", "dim")
        self._console.print(line, overflow="ellipsis", no_wrap=True, soft_wrap=False)


def of_engine(topic: str, data: Any) -> str:
    """Return in words what an event of the engine's own says; empty where its data is to be shown.

    ``data`` is the event's, which nobody but the engine can publish.
    """
    if not isinstance(data, dict):
        return ""
    told = cast("dict[str, Any]", data)
    message = str(told.get("message") or "")
    code = f"{told['code']}: " if told.get("code") else ""
    if topic.startswith("loom.log."):
        return message
    if topic.startswith("loom.error."):
        hint = f"; {told['hint']}" if told.get("hint") else ""
        return f"{message}{hint}"  # the topic has the code
    if topic.startswith("loom.dead."):
        tries = counted(int(told.get("attempt") or 0), "attempt", "attempts")
        why = f"{code}{message}".rstrip(": ")
        return f"given up by {told.get('consumer')} after {tries}{why and ': '}{why}"
    return ""


def _begin(event: Event[Any]) -> Text:
    """Return the beginning of a line: when it was."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    return Text(f"{clock}.{int(event.time % 1 * 1000):03d} ", style="dim", no_wrap=True)


def counted(number: int, one: str, many: str) -> str:
    """Return ``1 agent`` or ``2 agents``."""
    return f"{number} {one if number == 1 else many}"


def figures(stats: Mapping[str, Any], events: int, seconds: float) -> dict[str, Any]:
    """Return the figures of a run: totals, and per agent and capability their P50 and P99.

    ``events`` are those that were shown, without the engine's own.
    """
    agents = [s for s in stats["subscriptions"] if s["kind"] == "agent"]
    return {
        "type": "figures",
        "seconds": round(seconds, 3),
        "events": events,
        "delivered": sum(agent["delivered"] for agent in agents),
        "failed": sum(agent["failed"] for agent in agents),
        "dropped": sum(stats["events"]["dropped"].values()),
        "calls": stats["calls"]["started"],
        "retried": stats["calls"]["retried"],
        "errors": sum(stats["errors"].values()),
        "agents": [
            {"name": a["name"], "events": a["delivered"], **_quantiles(a["latency"])}
            for a in agents
        ],
        "capabilities": [
            {"name": c["name"], "calls": c["calls"], **_quantiles(c["duration"])}
            for c in stats["capabilities"]
            if c["calls"]
        ],
    }


def print_figures(console: Console, told: Mapping[str, Any]) -> None:
    """Print the figures of a run as a line and a table."""
    parts = [
        counted(told["events"], "event", "events"),
        counted(told["calls"], "call", "calls"),
        counted(told["errors"], "error", "errors"),
        f"{told['dropped']} dropped in {told['seconds']:.2f} s",
    ]
    if told["failed"]:
        parts.append(f"{counted(told['failed'], 'turn', 'turns')} failed")
    if told["retried"]:
        parts.append(f"{told['retried']} retried")
    console.print(", ".join(parts), highlight=False)
    if not any(entry["events"] for entry in told["agents"]) and not told["capabilities"]:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "count", "P50", "P99"):
        table.add_column(title, justify="left" if not title else "right")
    for entry in told["agents"]:
        if not entry["events"]:
            continue
        table.add_row(f"{entry['name']}: wait for its turn", *_cells(entry, "events"))
    for entry in told["capabilities"]:
        table.add_row(f"{entry['name']}: call", *_cells(entry, "calls"))
    console.print(table)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    ids: str = "",
    texts: Sequence[str] = (),
) -> None:
    """Print a table to stdout.

    Where a terminal is too narrow, the ids in column ``ids`` are shown by how they end, which every
    command takes; then what stands in the columns ``texts`` goes over several lines; and where
    that is not enough, each row becomes a block of its own, with a line for each cell.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    room = console.width
    widths = _widths(columns, shown)
    if sum(widths) - _GAP > room and ids in columns:
        at = columns.index(ids)
        for row in shown:
            row[at] = short_id(row[at])
        widths = _widths(columns, shown)
    wraps: set[int] = set()
    for at in (columns.index(text) for text in texts if text in columns):
        if sum(widths) - _GAP > room:
            is_said = any(" " in row[at] for row in shown)
            widths[at] = min(widths[at], (_SAID if is_said else _NAME) + _GAP)
            wraps.add(at)
    if sum(widths) - _GAP > room and rows:
        _print_blocks(console, columns, shown)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        cells = [row[number] for row in shown if row[number]]
        is_number = bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells)
        table.add_column(
            column,
            no_wrap=number not in wraps,
            overflow="fold",
            justify="right" if is_number else "left",
        )
    for row in shown:
        table.add_row(*map(Text, row))
    console.print(table)


def end_with(hint: str, again: str = "") -> None:
    """Say below a table what a person can do next; nobody but a person is told.

    ``again`` are the options that named the place, and are to be given again.
    """
    if sys.stdout.isatty():
        more = f"; with {again}" if again else ""
        Console(stderr=True, highlight=False).print(Text(f"\n{hint}{more}", "dim"))


def short_id(id_: str) -> str:
    """Return how an id ends, which stands for it in every command; other text as it is."""
    return id_[-_SHORT:] if _UUID.fullmatch(id_) else id_


def short_ids(text: str) -> str:
    """Return ``text`` with the ids in it cut to how they end."""
    return _UUID.sub(lambda found: "…" + found[0][-6:], text)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return how wide each column is, with what lies between it and the next."""
    cells = zip(*rows, strict=True) if rows else [()] * len(columns)
    return [
        max(map(cell_len, (column, *found))) + _GAP
        for column, found in zip(columns, cells, strict=True)
    ]


def _print_blocks(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    margin = max(map(cell_len, columns))
    for number, row in enumerate(rows):
        if number:
            console.print()
        block = Table.grid(padding=(0, _GAP, 0, 0))
        block.add_column(min_width=margin, no_wrap=True, style="bold")
        block.add_column(overflow="fold")
        for column, cell in zip(columns, row, strict=True):
            if cell:
                block.add_row(Text(column), Text(cell))
        console.print(block)


def _quantiles(latency: Mapping[str, float]) -> dict[str, float]:
    return {"p50_us": latency["p50_us"], "p99_us": latency["p99_us"]}


def _cells(entry: Mapping[str, Any], count: str) -> tuple[str, str, str]:
    return str(entry[count]), _duration(entry["p50_us"]), _duration(entry["p99_us"])


def _duration(microseconds: float) -> str:
    if not microseconds:
        return "-"
    if microseconds < 1_000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.1f} ms"
    return f"{microseconds / 1_000_000:.2f} s"
