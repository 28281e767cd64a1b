"""Loom across processes: ``loom up`` with its defaults, and apps that attach to it."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import loom
from benchmarks import disk, part
from benchmarks.model import Sample
from benchmarks.workload import EVENT, FAN, Tally, measure_requests
from loom.address import read_token

_HERE: Final = "benchmarks.peers.node"
_IN_FLIGHT: Final = 256  # emits that wait for the node at a time
_WINDOW: Final = 768  # realtime events that have not been seen; fewer than a queue holds
_TOLD: Final = 128  # events between two words of the receiver


def publish(count: int) -> Sample:
    """Emit to an agent in another process; each emit is awaited: then the node has the event."""
    return asyncio.run(_publish(count, 1))


def stream(count: int) -> Sample:
    """Emit realtime events: each is on its way when emit returns, and nobody says more of it.

    The receiver says now and then how many it has, and no more than a window of them is under way:
    where more is sent than is taken, the oldest realtime events give way.
    """
    return asyncio.run(_stream(count))


def fan_out(count: int) -> Sample:
    """Emit to a hundred agents in another process."""
    return asyncio.run(_publish(count, FAN))


def request(count: int, concurrency: int) -> Sample:
    """Ask an agent in another process."""
    return asyncio.run(_request(count, concurrency))


def call(count: int, concurrency: int) -> Sample:
    """Call a capability of another process."""
    return asyncio.run(_call(count, concurrency))


@asynccontextmanager
async def up() -> AsyncGenerator[part.Part]:
    """Run a node on a free port, with its log in memory; the environment says where it is."""
    command = (sys.executable, "-m", "loom", "up", "--bind", "127.0.0.1:0", "--json")
    with disk.directory() as home:
        own = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "XDG_STATE_HOME": str(home)}
        async with part.running(*command, **own) as node:
            told: Mapping[str, Any] = await node.said()
            token = read_token(Path(told["token_file"]))
            with part.environment(LOOM_URL=told["urls"][0], LOOM_TOKEN=token):
                yield node


async def _publish(count: int, receivers: int) -> Sample:
    async with (
        up(),
        part.started(_HERE, "hear", receivers) as hears,
        loom.connect() as ctx,
    ):

        async def send(events: int) -> None:
            left = events

            async def some() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    await ctx.emit("readings.hall", EVENT)

            async with asyncio.TaskGroup() as group:
                for _ in range(min(_IN_FLIGHT, events)):
                    group.create_task(some())

        return await part.measure_rate(count, hears, send, receivers=receivers)


async def _stream(count: int) -> Sample:
    app = loom.App("publishes")
    sent = seen = expected = 0
    more = asyncio.Event()

    @app.agent("counts", topics=["seen"])
    async def _(ctx: loom.Context, event: loom.Event[tuple[int, int]]) -> None:
        nonlocal seen
        phase, so_far = event.data
        if phase == expected:
            seen = so_far
            more.set()

    async with up(), part.started(_HERE, "hear", 1) as hears, app.running() as ctx:

        async def send(events: int) -> None:
            nonlocal sent, seen, expected
            sent, seen, expected = 0, 0, events
            while sent < events:
                while sent - seen > _WINDOW - _TOLD:
                    more.clear()
                    await more.wait()
                for _ in range(min(_TOLD, events - sent)):
                    await ctx.emit("readings.hall", EVENT, qos="realtime")
                sent += _TOLD
                await asyncio.sleep(0)

        return await part.measure_rate(count, hears, send)


async def hear(receivers: str) -> None:
    """Attach agents that read the data, and say when all of a phase has come."""
    app = loom.App("hears")
    tally = Tally(0)

    async def listen(ctx: loom.Context, event: loom.Event[Any]) -> None:
        tally.value = event.data["sequence"]
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()
        if receivers == "1" and tally.seen % _TOLD == 0:
            await ctx.emit("seen", (tally.total, tally.seen), qos="realtime")

    for number in range(int(receivers)):
        app.agent(f"listener-{number}", topics=["readings.>"])(listen)
    async with app.running():
        await part.tell_phases(tally)


async def _request(count: int, concurrency: int) -> Sample:
    async with up(), part.started(_HERE, "answer") as answers, loom.connect() as ctx:
        await answers.said()

        async def ask() -> int:
            return (await ctx.request("readings.hall", EVENT)).data["sequence"]

        return await measure_requests(count, concurrency, ask)


async def _call(count: int, concurrency: int) -> Sample:
    async with up(), part.started(_HERE, "answer") as answers, loom.connect() as ctx:
        await answers.said()

        async def ask() -> int:
            return (await ctx.tool("read", args={"reading": EVENT}))["sequence"]

        return await measure_requests(count, concurrency, ask)


async def answer() -> None:
    """Attach an agent that answers with what it was sent, and a capability that does so."""
    app = loom.App("answers")

    @app.agent("answerer", topics=["readings.>"])
    async def _(ctx: loom.Context, event: loom.Event[Any]) -> Any:
        return event.data

    @app.capability("read", effect="pure")
    async def _(reading: dict[str, Any]) -> dict[str, Any]:
        return reading

    async with app.running():
        await part.stay()
