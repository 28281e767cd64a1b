"""``loom replay``: what happened in a run, or in a stretch of a log; and what the code does now."""

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from loom.cli.place import data_directory
from loom.cli.show import print_json, printable, show_time
from loom.codec import encode
from loom.errors import InvalidCursor, InvalidParams
from loom.node.looking import moment as time_of
from loom.node.place import find_log
from loom.replay import Log, Moment, Rerun, open_log

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


def show_replay(data: str | None, namespace: str | None, wanted: Stretch, *, as_json: bool) -> int:
    """Show it; return the exit code: 1 where a handler does something else than it did."""
    _check(wanted)
    log = opened(data, namespace)
    lines = Lines(as_json=as_json)
    try:
        if wanted.agents:
            return _rerun(log, wanted, lines)
        moments: Iterable[Moment]
        if wanted.run is not None:
            moments = asyncio.run(log.replay(wanted.run)).moments
        else:
            moments = _between(log, wanted)
        _play(moments, wanted.speed, lines)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def opened(data: str | None, namespace: str | None) -> Log:
    """Open the log that a command is about."""
    place = find_log(data_directory(data), namespace)
    return open_log(place.data, namespace=place.namespace)


def _check(wanted: Stretch) -> None:
    if (wanted.run is None) == (wanted.since is None):
        raise InvalidParams(
            "a replay is of one run, or from one place on",
            field="run",
            hint="give the id of a run, or --from POSITION or TIME; `loom runs` lists runs",
        )
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


def _between(log: Log, wanted: Stretch) -> Iterable[Moment]:
    since, until = _place(log, wanted.since or "", "from"), None
    if wanted.until is not None:
        until = _place(log, wanted.until, "until")
    start = since if isinstance(since, int) else 0
    end = until if isinstance(until, int) else None
    for found in log.events(start, end):
        if isinstance(since, float) and found.at < since:
            continue
        if isinstance(until, float) and found.at >= until:
            return
        yield found


def _place(log: Log, text: str, field: str) -> int | float:
    """Return a number of the log for a position, seconds since 1970 for a time."""
    if text.isdecimal():
        return int(text)
    try:
        return log.number(text)
    except InvalidCursor:
        pass
    try:
        return time_of(text, field=field, now=time.time())
    except InvalidParams:
        raise InvalidParams(
            f"{text!r} is neither a position nor a time",
            field=field,
            hint="a position as receipts show it, a time such as 14:05 or 2026-05-01T14:05, or 15m",
        ) from None


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
        told = (m for m in _between(log, wanted) if m.what == "turn" and m.run_id is not None)
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
