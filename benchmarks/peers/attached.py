"""A node and agents that are attached to it and have nothing to do."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

import loom
from benchmarks import part
from benchmarks.model import Sample
from benchmarks.peers import node
from benchmarks.peers.processes import resident

APPS: Final = 100
_HERE: Final = "benchmarks.peers.attached"


def one(count: int) -> Sample:
    """Attach ``count`` agents of one app, and see how much memory the node's process has."""
    return asyncio.run(_attach(count, 1))


def many(count: int) -> Sample:
    """Attach ``count`` agents of ``APPS`` apps, each with a session of its own."""
    return asyncio.run(_attach(count, min(APPS, count)))


async def _attach(count: int, apps: int) -> Sample:
    async with node.up() as up, part.started(_HERE, "wait", count, apps) as waits:
        await waits.said()
        memory = resident(up.process.pid)
        return {} if memory is None else {"memory": memory}


async def wait(agents: str, apps: str) -> None:
    """Attach so many agents, by as many apps, and stay."""
    each = int(agents) // int(apps)
    async with AsyncExitStack() as running:
        for number in range(int(apps)):
            app = loom.App(f"app-{number}")
            for one in range(number * each, (number + 1) * each):
                app.agent(f"agent-{one}", topics=[f"readings.{one}.>"])(_listen)
            await running.enter_async_context(app.running())
        await part.stay()


async def _listen(ctx: loom.Context, event: loom.Event[Any]) -> None:
    """Never called."""
