"""NATS: one server with its defaults, and nats-py at both ends, which hears by callbacks."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from benchmarks import disk, part
from benchmarks.model import Sample
from benchmarks.peers import servers
from benchmarks.workload import EVENT, FAN, Tally, decode, encode, measure_requests

_HERE: Final = "benchmarks.peers.nats"
_SUBJECT: Final = "readings.hall"
_URL: Final = "BENCH_NATS"


def publish(count: int) -> Sample:
    """Publish to one subscriber; nobody says that a message was taken."""
    return asyncio.run(_publish(count, 1))


def fan_out(count: int) -> Sample:
    """Publish to a hundred subscriptions of one process."""
    return asyncio.run(_publish(count, FAN))


def request(count: int, concurrency: int) -> Sample:
    """Ask a subscriber."""
    return asyncio.run(_request(count, concurrency))


@asynccontextmanager
async def server() -> AsyncGenerator[str]:
    """Run a server on a free port; the environment says where it is."""
    servers.client("nats")
    program = servers.program("nats-server", "nats-server")
    port = servers.free_port()
    with (
        disk.directory() as place,
        servers.running((str(program), "-a", "127.0.0.1", "-p", str(port)), place),
    ):
        await servers.reachable(port)
        with part.environment(**{_URL: f"nats://127.0.0.1:{port}"}):
            yield os.environ[_URL]


@asynccontextmanager
async def connected() -> AsyncGenerator[Any]:
    """Connect to the server that the environment names."""
    connection = await servers.client("nats").connect(os.environ[_URL], max_reconnect_attempts=1)
    try:
        yield connection
    finally:
        await connection.close()


async def _publish(count: int, receivers: int) -> Sample:
    async with (
        server(),
        part.started(_HERE, "hear", receivers) as hears,
        connected() as connection,
    ):

        async def send(events: int) -> None:
            for _ in range(events):
                await connection.publish(_SUBJECT, encode(EVENT))
            await connection.flush()

        return await part.measure_rate(count, hears, send, receivers=receivers)


async def hear(receivers: str) -> None:
    """Subscribe, read the data, and say when all of a phase has come."""
    tally = Tally(0)

    async def listen(message: Any) -> None:
        tally.value = decode(message.data)["sequence"]
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()

    async with connected() as connection:
        for _ in range(int(receivers)):
            await connection.subscribe("readings.>", cb=listen)
        await connection.flush()
        await part.tell_phases(tally)


async def _request(count: int, concurrency: int) -> Sample:
    async with server(), part.started(_HERE, "answer") as answers, connected() as connection:
        await answers.said()

        async def ask() -> int:
            answer = await connection.request(_SUBJECT, encode(EVENT), timeout=30)
            return decode(answer.data)["sequence"]

        return await measure_requests(count, concurrency, ask)


async def answer() -> None:
    """Answer with what came."""
    async with connected() as connection:

        async def on_request(message: Any) -> None:
            await message.respond(encode(decode(message.data)))

        await connection.subscribe("readings.>", cb=on_request)
        await connection.flush()
        await part.stay()
