"""One event to a hundred agents that read the data, in one process."""

import asyncio
from typing import Any

import loom
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import autogen, queue
from benchmarks.workload import EVENT, FAN, Tally, measure_rate


def fan_out(count: int) -> Sample:
    """Emit from the app; each event is one turn of each agent."""
    return asyncio.run(_fan_out(count))


async def _fan_out(count: int) -> Sample:
    app = loom.App("bench")
    tally = Tally(0)

    async def listen(ctx: loom.Context, event: loom.Event[Any]) -> None:
        tally.value = event.data["sequence"]
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()

    for number in range(FAN):
        app.agent(f"listener-{number}", topics=["readings.>"])(listen)

    async with app.running() as ctx:

        async def send(events: int) -> None:
            for _ in range(events):
                await ctx.emit("readings.hall", EVENT)

        return await measure_rate(count, tally, send, receivers=FAN)


CASE = Case(
    name="fanout",
    title="one event → 100 agents that read the data (deliveries)",
    sides=(
        Side(name="Loom", run=fan_out, count=8_000),
        Side(name="100 × asyncio.Queue(1024), bare", run=queue.fan_out, count=8_000),
        Side(name="AutoGen core", run=autogen.fan_out, count=60),
    ),
    targets=(
        Target(
            name="fanout-queue",
            promise="one event to 100 agents against a put into each of 100 bare queues",
            metric="rate",
            of="Loom",
            against="100 × asyncio.Queue(1024), bare",
            at_least=0.35,
        ),
        Target(
            name="fanout-autogen",
            promise="one event to 100 agents against AutoGen core's runtime",
            metric="rate",
            of="Loom",
            against="AutoGen core",
            at_least=30,
        ),
    ),
)
