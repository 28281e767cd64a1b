"""emit → a handler that suspends once, at most 256 at a time on both sides."""

import asyncio
from typing import Any

import loom
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import tasks
from benchmarks.workload import EVENT, Tally, measure_rate


def emit(count: int) -> Sample:
    """As many handlers at a time as the peer may have tasks."""
    return asyncio.run(_emit(count, tasks.IN_FLIGHT))


async def _emit(count: int, concurrency: int) -> Sample:
    app = loom.App("bench")
    tally = Tally(0)

    @app.agent("listener", topics=["readings.>"], concurrency=concurrency)
    async def listen(ctx: loom.Context, event: loom.Event[Any]) -> None:
        value = event.data["sequence"]
        await asyncio.sleep(0)
        tally.value = value
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()

    async with app.running() as ctx:

        async def send(number: int) -> None:
            for _ in range(number):
                await ctx.emit("readings.hall", EVENT)

        return await measure_rate(count, tally, send)


CASE = Case(
    name="suspending",
    title="emit → a handler that suspends once",
    sides=(
        Side(name="Loom", run=emit, count=60_000),
        Side(
            name="a task per event, same work",
            run=tasks.task_per_event_suspending,
            count=60_000,
        ),
    ),
    targets=(
        Target(
            name="suspending-tasks",
            promise="handlers that suspend against a task per event doing the same",
            metric="rate",
            of="Loom",
            against="a task per event, same work",
            at_least=0.7,
        ),
    ),
)
