"""Realtime events by timetable, while durable ones keep the disk busy and while they do not.

Both in one process, by turns of a quarter of a second: what disturbs one disturbs the other. The
durable publishers are few, so that they keep a sync in flight all the time and leave the processor
to others.
"""

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import loom
from benchmarks import disk
from benchmarks.model import Case, Sample, Side, Target, Together
from benchmarks.workload import EVENT, check, pace, percentile

ALONE = "Loom, realtime events alone"
BESIDE = "Loom, realtime events beside durable ones"
RATE = 1_000.0  # realtime events a second
PUBLISHERS = 4  # of durable events, each of which waits for its ack
_SLICE = 250  # events


class _Traffic:
    """Publishers that keep the disk busy while they are let."""

    def __init__(self, ctx: loom.Context) -> None:
        self._ctx = ctx
        self._busy = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._active = 0
        self.acked = 0

    async def publish(self) -> None:
        """Publish whenever it is let, for ever."""
        while True:
            await self._busy.wait()
            self._active += 1
            self._idle.clear()
            try:
                while self._busy.is_set():
                    await self._ctx.emit("orders.placed", EVENT, ack="disk")
                    self.acked += 1
            finally:
                self._active -= 1
                if self._active == 0:
                    self._idle.set()

    def begin(self) -> None:
        """Let them publish."""
        self._busy.set()

    async def end(self) -> None:
        """Let them publish no more, and wait for the last acks."""
        self._busy.clear()
        await self._idle.wait()


def measure(count: int) -> Mapping[str, Sample]:
    """Send ``count`` realtime events in either state of the disk."""
    return asyncio.run(_measure(count))


async def _measure(count: int) -> Mapping[str, Sample]:
    app = loom.App("bench")
    taken: list[float] = []
    due_at: list[float] = []
    here = asyncio.Event()

    @app.agent("listener", topics=["readings.>"])
    async def listen(ctx: loom.Context, event: loom.Event[Any]) -> None:
        number: int = event.data["sequence"]
        taken.append(perf_counter() - due_at[number])
        if len(taken) == len(due_at):
            here.set()

    seconds: dict[str, list[float]] = {ALONE: [], BESIDE: []}
    with disk.directory() as place:
        async with app.running(data=place) as ctx, asyncio.TaskGroup() as group:
            traffic = _Traffic(ctx)
            publishers = [group.create_task(traffic.publish()) for _ in range(PUBLISHERS)]
            for number in range(2 * (count // _SLICE) + 2):
                beside = number % 2 == 1
                if beside:
                    traffic.begin()
                taken.clear()
                due_at.clear()
                async for due in pace(RATE, _SLICE / RATE):
                    due_at.append(due)
                    await ctx.emit(
                        "readings.hall", {**EVENT, "sequence": len(due_at) - 1}, qos="realtime"
                    )
                while len(taken) < len(due_at):
                    here.clear()
                    await here.wait()
                if beside:
                    await traffic.end()
                if number >= 2:  # the first of each kind warms up
                    seconds[BESIDE if beside else ALONE] += taken
            check(traffic.acked > 0, "no durable event was acked")
            for publisher in publishers:
                publisher.cancel()
    return {
        name: {"p50": percentile(some, 50) * 1e6, "p99": percentile(some, 99) * 1e6}
        for name, some in seconds.items()
    }


CASE = Case(
    name="durable_realtime",
    title=f"emit → an agent, {RATE:,.0f} realtime events a second by timetable",
    sides=(Side(name=ALONE), Side(name=BESIDE)),
    together=Together(run=measure, count=1_500),
    targets=(
        Target(
            name="durable-realtime-p99",
            promise="P99 of realtime events while durable ones keep the disk busy, and without",
            metric="p99",
            of=BESIDE,
            against=ALONE,
            at_most=1.5,
        ),
    ),
)
