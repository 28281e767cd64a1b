"""Who keeps the barriers: an ordinary agent, started when the first member comes."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from loom.agent import Agent, on
from loom.app import App
from loom.collab.messages import Arrival, Outcome
from loom.collab.waiting import ends_within
from loom.context import Context
from loom.envelope import Event
from loom.errors import Conflict, Exhausted, InvalidParams
from loom.limits import AGENT_CONCURRENCY_MAX, BARRIER_KEPT_SECONDS, BARRIER_WAITING, BARRIERS

_app: Final = App("loom.collab")


@dataclass(slots=True)
class _Barrier:
    """One barrier. Those who have come are kept in the order they came."""

    n: int
    members: dict[str, None] = field(default_factory=dict[str, None])
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome | None = None
    ended_at: float = 0.0

    def end(self, now: float) -> Outcome:
        """End it, if it has not ended, and return how."""
        if self.outcome is None:
            came = list(self.members)
            self.outcome = Outcome(v=1, n=self.n, members=came, complete=len(came) == self.n)
            self.ended_at = now
            self.is_over.set()
        return self.outcome


@_app.agent("loom.barrier", concurrency=AGENT_CONCURRENCY_MAX)
class Coordinator(Agent):
    """Answers each arrival when its barrier ends. Every arrival has a lane of its own."""

    def __init__(self) -> None:
        self._open: dict[str, _Barrier] = {}
        self._ended: OrderedDict[str, _Barrier] = OrderedDict()  # the oldest first
        self._waiting = 0

    @on("thread.*.barrier.>")
    async def arrive(self, ctx: Context[Any], event: Event[Arrival]) -> Outcome:
        """Let one member wait until all have come, or the first of them has waited enough.

        Raises:
            InvalidParams: it did not ask.
            Conflict: another number of members is waited for.
            Exhausted: too many barriers, or too many who wait.
        """
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
        if len(members) < barrier.n:
            await self._wait(ctx, barrier, arrival.timeout_ms / 1000)
        outcome = barrier.end(ctx.monotonic())
        if self._open.pop(topic, None) is not None:
            self._ended[topic] = barrier
            if len(self._ended) > BARRIERS:
                self._ended.popitem(last=False)
        return outcome

    async def _wait(self, ctx: Context[Any], barrier: _Barrier, seconds: float) -> None:
        async def over() -> None:
            await barrier.is_over.wait()

        self._waiting += 1
        try:
            await ends_within(ctx, seconds, over)
        finally:
            self._waiting -= 1

    def _find(self, topic: str, n: int, now: float) -> _Barrier:
        """Return the barrier of a topic, a new one where there is none."""
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
