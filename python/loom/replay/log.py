"""A log for those who look into it: its runs, what happened in them, and why."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from loom.codec import decode
from loom.errors import InvalidParams, NotFound
from loom.limits import LOG_RUNS_SHOWN
from loom.link import Reader, Row, open_reader
from loom.replay.moments import Moment, moments
from loom.replay.records import RunRecord
from loom.replay.rerun import Rerun, Stage, check_app, state_hash
from loom.replay.why import Chain, chain_of

if TYPE_CHECKING:
    from loom.app import App

_DEFAULT = "default"
_PORTION = 4_000  # records read at a time
_NAMED = 3  # close matches that an error names
_SHORT = 4  # characters that may stand for an id


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What is known of a run: times in seconds since 1970, the last being that of its last record.

    ``open`` turns have not ended; ``missing`` records were left out because the log was behind.
    ``whole``: all of it is there, and it can be run again.
    """

    id: str
    topic: str | None
    started: float
    ended: float
    events: int
    turns: int
    calls: int
    errors: int
    agents: tuple[str, ...]
    missing: int
    open: int
    whole: bool


class Log:
    """The log of one namespace, read up to what is durable. It writes nothing."""

    def __init__(self, reader: Reader, namespace: str) -> None:
        self._reader = reader
        self.namespace = namespace

    def runs(self, *, limit: int = LOG_RUNS_SHOWN) -> list[RunInfo]:
        """Return the newest runs, at most ``limit``, the oldest of them first."""
        found = self._reader.runs(self.namespace, limit)
        return [
            RunInfo(
                id=ident,
                topic=topic,
                started=started / 1000,
                ended=ended / 1000,
                events=events,
                turns=turns,
                calls=calls,
                errors=errors,
                agents=tuple(agents),
                missing=missing,
                open=still,
                whole=whole,
            )
            for (
                ident,
                topic,
                started,
                ended,
                events,
                turns,
                calls,
                errors,
                agents,
                missing,
                still,
                whole,
            ) in found
        ]

    def run(self, run: str) -> RunInfo:
        """Return what is known of one run; how its id begins or ends is enough.

        Raises:
            NotFound: there is no such run.
        """
        known = self.runs()
        ids = [info.id for info in known]
        return known[ids.index(_resolved(run, ids, "run", "`loom runs` lists them"))]

    def events(self, start: int = 0, until: int | None = None) -> Iterator[Moment]:
        """Return what happened from one number of a position on, in order, before another."""
        return moments(self._rows(start, until))

    def moments(self, run: str) -> tuple[Moment, ...]:
        """Return what happened in a run; how its id begins or ends is enough.

        Raises:
            NotFound: there is no such run.
        """
        return tuple(moments(self._reader.run(self.namespace, self._run_id(run))))

    async def replay(self, run: str, *, agents: "App | None" = None) -> Rerun:
        """Return a run as it was; with ``agents``, an app, also run its handlers again.

        No effect happens: what the handlers call, ask and read is served from the record.

        Raises:
            NotFound: there is no such run.
            InvalidParams: ``agents`` is no app.
        """
        app = None if agents is None else check_app(agents)
        ident = self._run_id(run)
        rows = self._reader.run(self.namespace, ident)
        told = tuple(moments(rows))
        record = RunRecord(ident, rows)
        if app is None:
            return Rerun(run_id=ident, moments=told, missing=record.missing)
        first = rows[0][2]
        states, _ = self._reader.fold(self.namespace, first)
        before = {(agent, key): state for agent, key, state in states}
        stage = Stage(app, record, before, self._heard(record))
        reports, now = await stage.play()
        then = dict(before)
        own = record.lanes
        for _, agent, key, state in record.states:
            if (agent, key) in own:
                then[agent, key] = state
        return Rerun(
            run_id=ident,
            moments=told,
            turns=tuple(reports),
            state=state_hash({k: v for k, v in now.items() if k in own}),
            recorded_state=state_hash({k: v for k, v in then.items() if k in own}),
            missing=record.missing,
        )

    def why(self, event_id: str) -> Chain:
        """Return the chain of causes that leads to an event; how its id begins or ends is enough.

        Raises:
            NotFound: there is no such event; the hint names close ones.
        """
        rows = self._reader.find(self.namespace, [event_id])
        if not rows:
            part = event_id.removeprefix("…")
            alike = self._reader.alike(self.namespace, part, 50) if len(part) >= _SHORT else []
            rows = self._reader.find(
                self.namespace, [_resolved(event_id, alike, "event", "`loom logs` shows events")]
            )
        head = rows[0][3]
        record = RunRecord(head["run_id"], self._reader.run(self.namespace, head["run_id"]))
        return chain_of(record, head["id"])

    def states(self, before: int | None = None) -> dict[tuple[str, str], Any]:
        """Return the states of all agents, by agent and key: now, or before a number."""
        found, _ = self._reader.fold(self.namespace, before)
        return {(agent, key): decode(state) for agent, key, state in found}

    def state_hash(self, before: int | None = None, *, anew: bool = False) -> str:
        """Return the hash of all that is folded from the log: now, or before a number.

        It begins at the newest snapshot, or ``anew`` with the oldest record: the hash is the same.
        """
        return self._reader.fold(self.namespace, before, anew=anew)[1].hex()

    @property
    def bounds(self) -> tuple[int, int]:
        """The oldest number that is kept, and the one behind the newest."""
        return self._reader.bounds(self.namespace)

    def number(self, position: str) -> int:
        """Return the number of a position, as ``events`` takes it.

        Raises:
            InvalidCursor: it is no position of this log.
        """
        return self._reader.number(self.namespace, position)

    def _run_id(self, run: str) -> str:
        if self._reader.run(self.namespace, run):
            return run
        return self.run(run).id

    def _rows(self, start: int, until: int | None) -> Iterator[Row]:
        first, end = self.bounds
        position, last = max(start, first), end if until is None else until
        at_end = False
        while position < last and not at_end:
            rows, position, at_end = self._reader.read(self.namespace, position, _PORTION)
            yield from (row for row in rows if row[2] < last)

    def _heard(self, record: RunRecord) -> dict[str, Any]:
        """Return the events of other runs that turns of this one have heard."""
        entries = (entry for turn in record.turns for entry in turn.entries)
        ids = {decode(entry.result) for entry in entries if entry.kind == "heard" and entry.result}
        missing = [ident for ident in ids if ident not in record.events]
        if not missing:
            return {}
        return RunRecord("", self._reader.find(self.namespace, missing)).events


def open_log(path: str | os.PathLike[str], *, namespace: str | None = None) -> Log:
    """Open the log in a data directory for reading; beside a running engine too.

    ``namespace`` may be left out where there is one only, or one called "default".

    Raises:
        InvalidParams: ``path`` is no path, or it has several namespaces.
        NotFound: there is no log, or none of that namespace.
        NotSupported: a newer version of Loom has written it.
    """
    reader = open_reader(path)
    there = reader.namespaces()
    chosen = namespace
    if chosen is None:
        chosen = there[0] if len(there) == 1 else _DEFAULT
        if chosen not in there:
            raise InvalidParams(
                f"{os.fspath(path)} has the logs of {len(there)} namespaces",
                field="namespace",
                hint=f"name one: {', '.join(there) or 'nothing was logged there yet'}",
            )
    if chosen not in there:
        close = get_close_matches(chosen, there, _NAMED) or there[:_NAMED]
        raise NotFound(
            f"{os.fspath(path)} has no log of namespace {chosen!r}",
            field="namespace",
            hint=f"there is: {', '.join(close)}" if close else "nothing was logged there yet",
        )
    return Log(reader, chosen)


def _resolved(given: str, ids: list[str], what: str, see: str) -> str:
    """Return the id that ``given`` stands for."""
    short = given.removeprefix("…")
    fitting = [one for one in ids if one.startswith(short) or one.endswith(short)]
    if len(fitting) == 1 and len(short) >= _SHORT:
        return fitting[0]
    if fitting and short:
        raise InvalidParams(
            f"{len(fitting)} {what}s begin or end with {short!r}",
            field=what,
            hint=f"one of: {', '.join(fitting[-_NAMED:])}",
        )
    close = get_close_matches(given, ids, _NAMED, cutoff=0.7)
    raise NotFound(
        f"there is no {what} {given!r} in the log",
        field=what,
        hint=f"close to it: {', '.join(close)}" if close else see,
    )
