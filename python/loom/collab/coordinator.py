"""Who keeps the barriers: an ordinary agent, started when the first member comes."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from loom.agent import Agent, on
from loom.app import App
from loom.collab.coming import Stay, taken
from loom.collab.messages import Arrival, Outcome
from loom.collab.waiting import Deadline
from loom.context import Context
from loom.envelope import Event
from loom.errors import Conflict, Exhausted, InvalidParams
from loom.limits import AGENT_CONCURRENCY_MAX, BARRIER_KEPT_SECONDS, BARRIER_WAITING, BARRIERS

_app: Final = App("loom.collab")


@dataclass(slots=True)
class _Barrier:
    """One barrier. Those who have come are kept in the order they came.

    ``until`` is when it ends where all who waited have gone.
    """

    n: int
    members: dict[str, None] = field(default_factory=dict[str, None])
    waiting: list[Stay] = field(default_factory=list[Stay])
    until: float = 0.0
    outcome: Outcome | None = None
    ended_at: float = 0.0


@_app.agent("loom.barrier", concurrency=AGENT_CONCURRENCY_MAX)
class Coordinator(Agent):
    """Answers each arrival when its barrier ends. Every arrival has a lane of its own."""

    def __init__(self) -> None:
        self._open: dict[str, _Barrier] = {}
        self._deserted: dict[str, _Barrier] = {}  # open ones where nobody waits, oldest first
        self._ended: OrderedDict[str, _Barrier] = OrderedDict()  # the oldest first
        self._waiting = 0

    @on("thread.*.barrier.>")
    async def arrive(self, ctx: Context[Any], event: Event[Arrival]) -> Outcome | None:
        """Let one member wait until all have come, or the first of them has waited enough.

        One that has gone gets no answer, and its place is free.

        Raises:
            InvalidParams: it did not ask.
            Conflict: another number of members is waited for.
            Exhausted: too many barriers, or too many who wait.
        """
        stay = taken(ctx, event.key)
        if not event.wants_reply:
            raise InvalidParams(
                "an arrival is a request: nobody waits for the outcome",
                field="topic",
                hint="use loom.collab.barrier, or ctx.request",
            )
        arrival, topic = event.data, event.topic
        barrier = self._find(topic, arrival.n, ctx.monotonic())
        if barrier.outcome is not None:
            return barrier.outcome
        members = {**barrier.members, _member(event.sender, arrival.member): None}
        if len(members) < barrier.n and self._waiting >= BARRIER_WAITING:
            raise Exhausted(
                f"{BARRIER_WAITING} members wait at barriers",
                field="name",
                limit="barrier_waiting",
                hint="come again when others have gone on",
            )
        barrier.members = members
        self._open[topic] = barrier
        self._deserted.pop(topic, None)
        if len(members) < barrier.n:
            deadline = Deadline(ctx, arrival.timeout_ms / 1000)
            await self._wait(barrier, stay, deadline)
            gave_up = stay.has_gone and not stay.was_late
            if barrier.outcome is None and gave_up and not deadline.is_over:
                if not barrier.waiting:
                    self._desert(topic, barrier, deadline.at)
                return None
        return self._end(topic, barrier, ctx.monotonic())

    async def _wait(self, barrier: _Barrier, stay: Stay, deadline: Deadline) -> None:
        self._waiting += 1
        barrier.waiting.append(stay)
        try:
            await deadline.ends(stay.woken)
        finally:
            barrier.waiting.remove(stay)
            self._waiting -= 1

    def _desert(self, topic: str, barrier: _Barrier, until: float) -> None:
        """Keep a barrier where nobody waits: those who come in time still find its members."""
        barrier.until = until
        self._deserted[topic] = barrier
        if len(self._deserted) > BARRIERS:
            oldest, lost = next(iter(self._deserted.items()))
            self._end(oldest, lost, min(lost.until, until))

    def _end(self, topic: str, barrier: _Barrier, now: float) -> Outcome:
        """End a barrier, if it has not ended, and return how."""
        if barrier.outcome is None:
            came = list(barrier.members)
            complete = len(came) == barrier.n
            barrier.outcome = Outcome(v=1, n=barrier.n, members=came, complete=complete)
            barrier.ended_at = now
            for stay in barrier.waiting:
                stay.wake()
            self._open.pop(topic, None)
            self._deserted.pop(topic, None)
            self._ended[topic] = barrier
            if len(self._ended) > BARRIERS:
                self._ended.popitem(last=False)
        return barrier.outcome

    def _find(self, topic: str, n: int, now: float) -> _Barrier:
        """Return the barrier of a topic, a new one where there is none."""
        deserted = self._deserted.get(topic)
        if deserted is not None and deserted.until <= now:
            self._end(topic, deserted, deserted.until)
        kept = self._ended.get(topic)
        if kept is not None and now - kept.ended_at >= BARRIER_KEPT_SECONDS:
            del self._ended[topic]
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if now - oldest.ended_at < BARRIER_KEPT_SECONDS:
                break
            self._ended.popitem(last=False)
        barrier = self._open.get(topic) or self._ended.get(topic) or _Barrier(n)
        if barrier.n != n:
            raise Conflict(
                f"this barrier is one of {barrier.n}, not of {n}",
                field="n",
                hint="all members give the same n; another round needs another name",
            )
        return barrier


def _member(sender: str, member: str | None) -> str:
    return sender if member is None else f"{sender}/{member}"


COORDINATOR: Final = _app.agents[0]
