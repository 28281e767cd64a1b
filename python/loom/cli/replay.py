"""``loom replay``: what happened in a run, or in a stretch of a log; and what the code does now."""

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from loom.cli.asked import Where, at_node, streamed
from loom.cli.place import data_directory
from loom.cli.show import print_json, printable, show_time
from loom.codec import encode
from loom.errors import InvalidParams, NotSupported
from loom.node.asking import replayed
from loom.node.place import find_log
from loom.replay import Log, Moment, Rerun, open_log

if TYPE_CHECKING:
    from loom.context import Context

_INTERRUPTED = 130
_DIVERGED = 1
_PREVIEW = 200  # characters of data on one line
_LONGEST_PAUSE = 60.0  # seconds that one pause of a replay lasts at most
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_STYLES = {"event": "bold", "turn": "cyan", "turn_end": "dim", "gap": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What of a log is shown: a run, or what lies between two places; ``speed`` 0: at once."""

    run: str | None = None
    since: str | None = None
    until: str | None = None
    speed: float = 0.0
    agents: bool = False
    app: str | None = None


def show_replay(where: Where, wanted: Stretch, *, as_json: bool) -> int:
    """Show it; return the exit code: 1 where a handler does something else than it did."""
    _check(wanted)
    lines = Lines(as_json=as_json)
    try:
        if where.node is not None:
            return asyncio.run(at_node(where, lambda ctx: _of_node(ctx, wanted, lines)))
        log = opened(where.data, where.namespace)
        if wanted.agents:
            return _rerun(log, wanted, lines)
        _play(replayed(log, wanted.run, wanted.since, wanted.until), wanted.speed, lines)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


async def _of_node(ctx: "Context[Any]", wanted: Stretch, lines: "Lines") -> int:
    if wanted.agents:
        raise NotSupported(
            "handlers are run again where the log is",
            field="agents",
            hint="there: loom replay … --agents --data DIR; `loom backup` makes a copy to take",
        )
    asked = {"run": wanted.run, "since": wanted.since, "until": wanted.until}
    async with streamed(ctx, "replay", asked) as items:
        told = (Moment(**item) async for item in items)
        if wanted.speed:  # it takes its time, which a node does not wait for
            _play([moment async for moment in told], wanted.speed, lines)
        else:
            async for moment in told:
                lines.show(moment)
    return 0


def opened(data: str | None, namespace: str | None) -> Log:
    """Open the log that a command is about."""
    place = find_log(data_directory(data), namespace)
    return open_log(place.data, namespace=place.namespace)


def _check(wanted: Stretch) -> None:
    if wanted.run is not None and wanted.until is not None:
        raise InvalidParams(
            "--until goes with --from", field="until", hint="a run is shown to its end"
        )
    if not 0 <= wanted.speed < 1e6:
        raise InvalidParams(
            f"the speed is {wanted.speed}", field="speed", hint="0: at once, 1: as fast as it was"
        )
    if wanted.app is not None and not wanted.agents:
        raise InvalidParams("--app goes with --agents", field="app", hint="add --agents")


def _play(moments: Iterable[Moment], speed: float, lines: "Lines") -> None:
    last: float | None = None
    for moment in moments:
        if speed and last is not None and moment.at > last:
            time.sleep(min((moment.at - last) / speed, _LONGEST_PAUSE))
        if moment.at:
            last = moment.at
        lines.show(moment)


def _rerun(log: Log, wanted: Stretch, lines: "Lines") -> int:
    from loom.cli.target import load_target

    app, _ = load_target(wanted.app)
    if wanted.run is not None:
        runs = [wanted.run]
    else:
        found = replayed(log, None, wanted.since, wanted.until)
        told = (m for m in found if m.what == "turn" and m.run_id is not None)
        runs = list(dict.fromkeys(str(moment.run_id) for moment in told))
    diverged = False
    for run in runs:
        rerun = asyncio.run(log.replay(run, agents=app))
        if lines.as_json:
            print_json(_record(rerun))
        else:
            _play(rerun.moments, 0, lines)
            _tell(rerun, lines)
        diverged = diverged or rerun.diverged
    return _DIVERGED if diverged else 0


def _record(rerun: Rerun) -> dict[str, Any]:
    return {
        "type": "rerun",
        "run_id": rerun.run_id,
        "diverged": rerun.diverged,
        "state": rerun.state,
        "recorded_state": rerun.recorded_state,
        "missing": rerun.missing,
        "turns": rerun.turns,
    }


def _tell(rerun: Rerun, lines: "Lines") -> None:
    lines.say("")
    for turn in rerun.turns:
        style = {"same": "green", "diverged": "red"}.get(turn.verdict, "yellow")
        said = {"same": "does the same", "diverged": "DIVERGED", "skipped": "was cut off then"}
        lines.say(f"{turn.agent} on {turn.topic}: {said[turn.verdict]}", style)
        for differs in turn.differs:
            lines.say(f"    {differs}")
    if rerun.missing:
        lines.say(f"{rerun.missing} records of this run are missing: the log was behind", "yellow")
    same = rerun.state == rerun.recorded_state
    found = "as recorded" if same else f"recorded {rerun.recorded_state[:16]}"
    lines.say(f"state {rerun.state[:16]}, {found}", "green" if same else "red")


class Lines:
    """Prints one line, or one JSON object, for each moment; times are relative to the first."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._console = Console(highlight=False)
        self._began: float | None = None

    def say(self, text: str, style: str = "") -> None:
        """Print a line of our own."""
        self._console.print(Text(printable(text), style), soft_wrap=True)

    def show(self, moment: Moment) -> None:
        """Print one moment."""
        if self.as_json:
            print_json({"type": "moment", **moment.shown()})
            return
        if self._began is None and moment.at:
            self._began = moment.at
            self._console.print(Text(f"{show_time(moment.at)} it begins", "dim"))
        since = max(0.0, moment.at - (self._began or moment.at))
        line = Text(f"+{since:9.3f}  ", "dim")
        inside = 0 if moment.what in ("event", "gap") else 1 if "turn" in moment.what else 2
        line.append("  " * (min(moment.hop, 6) * 2 + inside))
        line.append(printable(_words(moment)), _STYLES.get(moment.what, ""))
        if moment.code is not None:
            line.append(printable(f" {moment.code} {moment.note}"), "red")
        if moment.data is not None:
            line.append(printable(f" {_cut(moment.data)}"))
        self._console.print(line, overflow="ellipsis", no_wrap=True)


def _words(moment: Moment) -> str:
    name = _UUID.sub(lambda found: "…" + found[0][-6:], moment.name)
    took = "" if moment.seconds is None else _duration(moment.seconds)
    match moment.what:
        case "event":
            return f"{name} ← {moment.who}{' asks' if moment.note == 'asks' else ''}"
        case "turn":
            again = f", {moment.note}" if moment.note else ""
            version = f" version {name}" if name else ""
            return f"{moment.who}{version} begins, after {took}{again}"
        case "turn_end":
            return f"{moment.who} {'ends' if moment.code is None else 'fails:'}"
        case "call":
            return f"calls {name}"
        case "outcome":
            return f"{name} {'gives' if moment.code is None else 'fails:'} after {took}"
        case "gap":
            return moment.note
        case _:
            return f"{name} {took}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cut(data: Any) -> str:
    text = encode(data).decode()
    return text if len(text) <= _PREVIEW else f"{text[:_PREVIEW]}…"
