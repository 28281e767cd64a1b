"""An app of a thousand agents that nobody sends anything."""

import asyncio
from time import perf_counter
from typing import Any

import loom
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import autogen
from benchmarks.peers.processes import memory_since, resident

AGENTS = 1_000


async def _listen(ctx: loom.Context, event: loom.Event[Any]) -> None:
    """Never called."""


def register(count: int) -> Sample:
    """Declare ``count`` agents and start them; memory is what they take more than an empty app."""
    return asyncio.run(_register(count))


async def _register(count: int) -> Sample:
    async with loom.App("empty").running():
        empty = resident()
    start = perf_counter()
    app = loom.App("bench")
    for number in range(count):
        app.agent(f"agent-{number}", topics=[f"readings.{number}.>"])(_listen)
    async with app.running():
        await asyncio.sleep(0)  # now each of them has looked for work and found none
        seconds = perf_counter() - start
        return {"time": seconds * 1e3, **memory_since(empty)}


CASE = Case(
    name="idle",
    title="1,000 agents that wait: to declare and start them, and what they hold",
    sides=(
        Side(name="Loom", run=register, count=AGENTS),
        Side(name="AutoGen core", run=autogen.register, count=AGENTS),
    ),
    targets=(
        Target(
            name="idle-memory",
            promise="1,000 idle agents, memory more than that of an empty app (20 MB)",
            metric="memory",
            of="Loom",
            at_most=19,
        ),
        Target(
            name="idle-time",
            promise="1,000 agents, time to declare and start them",
            metric="time",
            of="Loom",
            at_most=500,
        ),
    ),
)
