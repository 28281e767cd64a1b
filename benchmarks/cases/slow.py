"""Nineteen quick subscribers, alone and beside one that never finishes.

Two apps in one process take turns of a few milliseconds, so that what disturbs one disturbs the
other. The load is open: the events have a timetable, and the time an event took is counted from the
moment it was due. A queue that is full holds its sender once, for at most ``batched_wait_ms``; from
then on its subscription lags, loses and counts. That one wait is shown apart: it is over before the
clock starts.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import loom
from benchmarks.model import Case, Metric, Sample, Side, Target, Together
from benchmarks.workload import EVENT, check, pace, percentile
from loom.limits import AGENT_CONCURRENCY, QUEUE_ITEMS

ALONE = "Loom"
BESIDE = "Loom, beside an agent that never finishes"
QUICK = 19
RATE = 2_000.0  # events a second
_SLICE = 100  # events that one app is sent before it is the other's turn
_SETTLE = 30.0  # seconds in which all of it is over, besides the load itself
_HOLDS = AGENT_CONCURRENCY + QUEUE_ITEMS  # events that one agent has in hand and in its queue


class _Subject:
    """One app, and how long each delivery of each event took."""

    def __init__(self, *, with_slow: bool) -> None:
        self.app = loom.App("bench")
        self.seconds: list[float] = []
        self.never = asyncio.Event()
        self._due: list[float] = []
        self._expected = 0
        self._all_here = asyncio.Event()
        for number in range(QUICK):
            self.app.agent(f"quick-{number}", topics=["readings.>"])(self._listen)
        if with_slow:
            self.app.agent("slow", topics=["readings.>"])(self._hang)

    async def _listen(self, ctx: loom.Context, event: loom.Event[Any]) -> None:
        number: int = event.data["sequence"]
        self.seconds.append(perf_counter() - self._due[number])
        if len(self.seconds) == self._expected:
            self._all_here.set()

    async def _hang(self, ctx: loom.Context, event: loom.Event[Any]) -> None:
        await self.never.wait()

    async def send(self, ctx: loom.Context, due: float) -> None:
        """Emit the event of that moment."""
        self._due.append(due)
        self._expected += QUICK
        await ctx.emit("readings.hall", {**EVENT, "sequence": len(self._due) - 1})

    async def load(self, ctx: loom.Context, events: int) -> None:
        """Emit events by timetable, and wait until each quick subscriber has had each of them."""
        async for due in pace(RATE, events / RATE):
            await self.send(ctx, due)
        await self.settle()

    async def settle(self) -> None:
        """Wait until each quick subscriber has had each event."""
        while len(self.seconds) < self._expected:
            self._all_here.clear()
            await self._all_here.wait()
        check(len(self.seconds) == self._expected, "an event was delivered twice")

    def reset(self) -> None:
        """Forget what was measured."""
        self._due.clear()
        self.seconds.clear()
        self._expected = 0

    async def fill(self, ctx: loom.Context) -> float:
        """Emit until the slow one lags; return the longest that the sender waited, in seconds."""
        waited = 0.0
        for _ in range(_HOLDS + 1):
            start = perf_counter()
            await self.send(ctx, start)
            waited = max(waited, perf_counter() - start)
            await asyncio.sleep(0)
        await self.settle()
        return waited

    def lost(self) -> int:
        """Return what the slow one has lost; its books must agree with each other."""
        found = next(one for one in self.app.stats()["subscriptions"] if one["name"] == "slow")
        lost: int = found["dropped"]["lagging"]
        check(found["lagging"], "the slow one does not lag")
        held = found["queued"] + found["leased"]
        check(found["matched"] == held + lost, "the slow one's books do not agree")
        return lost

    def figures(self) -> dict[Metric, float]:
        """Return the percentiles in microseconds."""
        return {
            "p50": percentile(self.seconds, 50) * 1e6,
            "p99": percentile(self.seconds, 99) * 1e6,
        }


def measure(count: int) -> Mapping[str, Sample]:
    """Send ``count`` events to each of the two apps, by turns."""
    return asyncio.run(_measure(count))


async def _measure(count: int) -> Mapping[str, Sample]:
    alone, beside = _Subject(with_slow=False), _Subject(with_slow=True)
    async with AsyncExitStack() as stack, asyncio.timeout(_SETTLE + 2 * count / RATE):
        subjects = [
            (subject, await stack.enter_async_context(subject.app.running()))
            for subject in (alone, beside)
        ]
        waited = await beside.fill(subjects[1][1])
        for subject, ctx in subjects:
            await subject.load(ctx, _SLICE)
            subject.reset()
        before = beside.lost()
        for begun in range(0, count, _SLICE):
            for subject, ctx in subjects:
                await subject.load(ctx, min(_SLICE, count - begun))
            subjects.reverse()
        lost = beside.lost() - before
        check(lost == count, f"the slow one lost {lost} of {count} events")
        beside.never.set()
    shown: Sample = {**beside.figures(), "longest": waited * 1e3, "lost": lost}
    return {ALONE: alone.figures(), BESIDE: shown}


CASE = Case(
    name="slow",
    title=f"emit → {QUICK} quick agents, {RATE:,.0f} events a second by timetable",
    sides=(
        Side(name=ALONE),
        Side(name=BESIDE),
    ),
    together=Together(run=measure, count=4_000),
    targets=(
        Target(
            name="slow-p99",
            promise="P99 of emit → 19 quick agents, with and without one that never finishes",
            metric="p99",
            of=BESIDE,
            against=ALONE,
            at_most=1.1,
        ),
    ),
)
