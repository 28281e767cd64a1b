"""emit → an ``async def`` handler that reads the data, in one process."""

import asyncio
from typing import Any

import loom
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import autogen, queue, tasks
from benchmarks.workload import EVENT, Tally, measure_rate


def emit(count: int) -> Sample:
    """Emit from the app to one agent; every event opens a thread, and so a lane, of its own."""
    return asyncio.run(_emit(count))


async def _emit(count: int) -> Sample:
    app = loom.App("bench")
    tally = Tally(0)

    @app.agent("listener", topics=["readings.>"])
    async def listen(ctx: loom.Context, event: loom.Event[Any]) -> None:
        tally.value = event.data["sequence"]
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()

    async with app.running() as ctx:

        async def send(number: int) -> None:
            for _ in range(number):
                await ctx.emit("readings.hall", EVENT)

        return await measure_rate(count, tally, send)


CASE = Case(
    name="emit",
    title="emit → a handler that reads the data",
    sides=(
        Side(name="Loom", run=emit, count=200_000),
        Side(name="asyncio.Queue(1024), bare", run=queue.hand_off, count=400_000),
        Side(name="asyncio.Queue(1024), same work", run=queue.hand_off_json, count=200_000),
        Side(name="a task per event, same work", run=tasks.task_per_event, count=60_000),
        Side(name="AutoGen core", run=autogen.publish, count=2_000),
    ),
    targets=(
        Target(
            name="emit-autogen",
            promise="emit → handler against AutoGen core's runtime",
            metric="rate",
            of="Loom",
            against="AutoGen core",
            at_least=60,
        ),
        Target(
            name="emit-queue",
            promise="emit → handler against a bare asyncio.Queue(1024) hand-off (aim: 0.5)",
            metric="rate",
            of="Loom",
            against="asyncio.Queue(1024), bare",
            at_least=0.35,
        ),
        Target(
            name="emit-tasks",
            promise="emit → handler against a task per event doing the same work",
            metric="rate",
            of="Loom",
            against="a task per event, same work",
            at_least=2,
        ),
    ),
)
