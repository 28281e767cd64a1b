"""Runs the handlers of an app again on what a run was given, and compares what they do.

No effect happens: calls, requests, models, memory and time are served from the record
(``serving.py``). What the code asks for and the record has not, what it no longer does, another
end of a turn and another state are differences, each told with its place.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from loom.agent import AgentSpec
from loom.app import App
from loom.codec import CANNOT_DECODE, encode, from_json
from loom.context import Context
from loom.envelope import Envelope, Event
from loom.errors import CODES, Diverged, InvalidParams, LoomError
from loom.link import digest
from loom.replay.moments import Moment, code_name
from loom.replay.records import Recorded, RunRecord, Turn
from loom.replay.serving import Engine, Link, Order, Served, Session, Tape
from loom.runtime.host import Host, Services, error_number
from loom.runtime.turns import Turns
from loom.validation import adapter_of

_PATIENCE = 5.0  # seconds beyond those that a turn took, before it is said to wait for nothing
_logger = logging.getLogger("loom.replay")
_logger.addHandler(logging.NullHandler())  # what handlers log was logged then
_logger.propagate = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReport:
    """What became of one turn that was run again; ``differs`` says how, where it diverged."""

    agent: str
    event_id: str
    topic: str
    verdict: Literal["same", "diverged", "skipped"]
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A run as it was, and what its handlers do now.

    ``state`` and ``recorded_state`` are hashes over the states that the turns left, then and now;
    ``missing`` records were left out when it was recorded. ``turns`` is empty where no handlers
    were run.
    """

    run_id: str
    moments: tuple[Moment, ...]
    turns: tuple[TurnReport, ...] = ()
    state: str = ""
    recorded_state: str = ""
    missing: int = 0

    @property
    def diverged(self) -> bool:
        """Whether a handler does something else than it did."""
        return self.state != self.recorded_state or any(t.differs for t in self.turns)


@dataclass(slots=True)
class _Player:
    """One agent of the app, as it is run again."""

    spec: AgentSpec
    host: Host
    turns: Turns
    cannot: str = ""  # why its turns cannot be run


@dataclass(slots=True)
class Stage:
    """An app on an engine that only serves what was recorded."""

    app: App
    record: RunRecord
    before: dict[tuple[str, str], bytes]  # states when the run began, by agent and key
    events: dict[str, Recorded]  # events of other runs that its turns have heard
    tapes: dict[int, Tape] = field(default_factory=dict[int, Tape])
    players: dict[str, _Player] = field(default_factory=dict[str, _Player])

    async def play(self) -> tuple[list[TurnReport], dict[tuple[str, str], bytes]]:
        """Run all turns again; return what became of them, and the states they leave."""
        session = Session(self.tapes)
        link = Link(session)
        await self._cast(session, link)
        reports: list[TurnReport] = []
        states = dict(self.before)
        known = iter([*self.record.states, (2**63, "", "", b"")])
        coming = next(known)
        recorded = dict(self.before)
        for number, turn in enumerate(self.record.turns):
            while coming[0] < turn.n:
                recorded[coming[1], coming[2]] = coming[3]
                coming = next(known)
            reports.append(await self._play_one(turn, number + 1, (recorded, states), link))
        return reports, states

    async def _cast(self, session: Session, link: Link) -> None:
        served = Served(self.tapes, self._event)
        services = Services(
            engine=cast("Any", Engine()),
            link=cast("Any", link),
            namespace=self.app.namespace,
            memory=served.memory(None),
            model=lambda: served.model(None),
            random=served.random(None, self.app.name),
            start=_no_agent,
            steps=served,
        )
        wanted = {turn.agent for turn in self.record.turns}
        for spec in self.app.agents:
            if spec.name not in wanted:
                continue
            host = Host(
                services=services,
                sender=0,
                name=spec.name,
                log=_logger,
                middleware=(*self.app.middleware, *spec.middleware),
                state_type=spec.state_type,
            )
            agent = spec.make()
            player = _Player(spec, host, Turns(host, spec, agent, lambda _: None))
            self.players[spec.name] = player
            if hasattr(agent, "on_start"):
                try:
                    await agent.on_start(Context(host))
                except Exception as error:  # noqa: BLE001  user code
                    player.cannot = f"its on_start does not run without an engine: {error}"

    def _event(self, ident: str) -> Recorded | None:
        return self.record.events.get(ident) or self.events.get(ident)

    async def _play_one(
        self,
        turn: Turn,
        lease: int,
        states: tuple[dict[tuple[str, str], bytes], dict[tuple[str, str], bytes]],
        link: Link,
    ) -> TurnReport:
        """Run one turn again."""
        event = self.record.events.get(turn.event_id)
        report = {"agent": turn.agent, "event_id": turn.event_id}
        topic = "" if event is None else event.topic
        skipped = self._skips(turn, event)
        recorded, now = states
        if skipped is not None or event is None:
            verdict, why = skipped or ("skipped", "its event is not kept any more")
            if turn.state is not None and event is not None:
                now[turn.agent, event.key or event.thread_id] = turn.state
            return TurnReport(
                **report, topic=topic, verdict=cast("Any", verdict), differs=_only(verdict, why)
            )
        lane = event.key or event.thread_id
        player = self.players[turn.agent]
        tape = self.tapes[lease] = Tape(turn, Order())
        before = recorded.get((turn.agent, lane))
        _set_state(player.host, lane, before)
        item = _delivered(event, turn, lease)
        code, error = await self._run(player, item, tape)
        differs = list(tape.differs)
        if not differs and code != turn.code:
            then, found = code_name(turn.code or 0), code_name(code) or "no error"
            what = f" ({error})" if error else ""
            differs.append(f"it ended with {found}{what}, recorded {then or 'no error'}")
        if not tape.differs:
            differs += tape.left()
        left = _state_of(player.host, lane)
        then_left = turn.state if turn.state is not None else before
        if left is not None:
            now[turn.agent, lane] = left
            if then_left is not None and left != then_left and not differs:
                shown = f"{then_left.decode()[:200]}, now {left.decode()[:200]}"
                differs.append(f"it leaves another state of {lane!r}: recorded {shown}")
        del self.tapes[lease]
        verdict = "diverged" if differs else "same"
        return TurnReport(**report, topic=topic, verdict=verdict, differs=tuple(differs))

    def _skips(self, turn: Turn, event: Recorded | None) -> tuple[str, str] | None:
        """Return how a turn stands that is not run, and why."""
        if event is None:
            return "skipped", "its event is not kept any more"
        if turn.code is None or turn.code == CODES["CANCELLED"]:
            return "skipped", "it was cut off"
        player = self.players.get(turn.agent)
        if player is None:
            return "diverged", f"the app has no agent {turn.agent!r} any more"
        if player.cannot:
            return "diverged", player.cannot
        return None

    async def _run(self, player: _Player, item: Recorded, tape: Tape) -> tuple[int, str]:
        """Run a handler to its end; return the number of its error, 0: none, and its words."""
        task = asyncio.get_running_loop().create_task(_handle(player, item))
        took = max(0, tape.turn.ended_ms - tape.turn.at_ms) / 1000
        try:
            await asyncio.wait([task], timeout=took + _PATIENCE)
            if not task.done():
                tape.differs.append("it waits for something that the record has not")
                task.cancel()
                await asyncio.wait([task], timeout=_PATIENCE)
                return CODES["DIVERGED"], ""
        finally:
            task.cancel()
        return task.result()


async def _handle(player: _Player, item: Recorded) -> tuple[int, str]:
    """Do what a pool does with one turn."""
    turns, host = player.turns, player.host
    envelope = cast("Envelope", item)
    try:
        target = turns.find(item.topic)
        try:
            if target.validate is not None:
                data = target.validate(item.payload)
            else:
                data = item.payload if item.json is None else from_json(item.json)
        except (ValueError, *CANNOT_DECODE) as error:
            raise turns.misfit(envelope, error) from None
        result = await target.handle(Context(host, item), Event(envelope, data))
        if result is not None:
            turns.settle(envelope, result)
    except LoomError as error:
        return error_number(error), error.message
    except asyncio.CancelledError:
        return CODES["CANCELLED"], ""
    except BaseException as error:  # the root of user code
        if isinstance(error, KeyboardInterrupt):
            raise
        return CODES["HANDLER_ERROR"], f"{type(error).__name__}: {error}"
    return 0, ""


async def _no_agent(spec: AgentSpec) -> None:
    """An agent that comes with a coordinator is one of the record already."""


def _only(verdict: str, why: str) -> tuple[str, ...]:
    return (why,) if verdict == "diverged" else ()


def _delivered(event: Recorded, turn: Turn, lease: int) -> Recorded:
    """Return an event as the turn got it."""
    from dataclasses import replace

    return replace(event, lease=lease, attempt=turn.attempt, turn=turn.number)


def _set_state(host: Host, lane: str, payload: bytes | None) -> None:
    host.states.pop(lane, None)
    if payload is not None and host.state_type is not None:
        try:
            host.states[lane] = adapter_of(host.state_type).validate_json(payload)
        except ValueError as error:
            raise Diverged(
                f"the state of agent {host.name!r} does not fit its type any more: {error}",
                who=host.name,
                hint="give what is new in it a default",
            ) from None


def _state_of(host: Host, lane: str) -> bytes | None:
    return encode(host.states[lane], "state") if lane in host.states else None


def state_hash(states: dict[tuple[str, str], bytes]) -> str:
    """Return what stands for all these states."""
    parts = (encode([agent, key, state.decode()]) for (agent, key), state in sorted(states.items()))
    return digest(b"\n".join(parts) or b"\n").hex()


def check_app(app: object) -> App:
    """Return the app whose handlers are to be run.

    Raises:
        InvalidParams: it is none.
    """
    if isinstance(app, App):
        return app
    raise InvalidParams(
        f"agents is {type(app).__name__}, not a loom.App",
        field="agents",
        hint="give the app whose handlers are to be run again",
    )
