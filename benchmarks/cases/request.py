"""request → reply in one process, one at a time."""

import asyncio
from typing import Any

import loom
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import autogen
from benchmarks.workload import EVENT, measure_requests


def request(count: int, concurrency: int = 1) -> Sample:
    """Ask an agent that answers with what it was sent, and read the answer."""
    return asyncio.run(_request(count, concurrency))


async def _request(count: int, concurrency: int) -> Sample:
    app = loom.App("bench")

    @app.agent("answerer", topics=["readings.>"])
    async def answer(ctx: loom.Context, event: loom.Event[Any]) -> Any:
        return event.data

    async with app.running() as ctx:

        async def ask() -> int:
            return (await ctx.request("readings.hall", EVENT)).data["sequence"]

        return await measure_requests(count, concurrency, ask)


CASE = Case(
    name="request",
    title="request → reply, one at a time",
    sides=(
        Side(name="Loom", run=request, count=20_000),
        Side(name="AutoGen core", run=autogen.ask, count=2_000),
    ),
    targets=(
        Target(
            name="request-p50",
            promise="request → reply, P50",
            metric="p50",
            of="Loom",
            at_most=60,
        ),
        Target(
            name="request-autogen",
            promise="request → reply against AutoGen core's send_message, one at a time",
            metric="rate",
            of="Loom",
            against="AutoGen core",
            at_least=6,
        ),
    ),
)
