"""Publishers in Node.js: ``@loomos/sdk`` over a WebSocket of a node, and nats.js; Python hears."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks import part
from benchmarks.model import NotInstalledError, Sample
from benchmarks.peers import nats, node
from benchmarks.workload import EVENT, encode
from loom.envelope import QoS

_HERE: Final = Path(__file__).resolve().parent
_MODULES: Final = _HERE.parents[1] / "node_modules"
_SDK: Final = "@loomos/sdk/dist/node.js"  # what users get: built, as `make bench` does
_NATS: Final = "@nats-io/transport-node/package.json"


def stream(count: int) -> Sample:
    """Emit realtime events, of which nobody says that they were taken, within a window."""
    return asyncio.run(_loom(count, "realtime"))


def publish(count: int) -> Sample:
    """Emit batched events, many at a time; each emit is awaited: then the node has the event."""
    return asyncio.run(_loom(count, "batched"))


def publish_nats(count: int) -> Sample:
    """Publish by nats.js; nobody says that a message was taken."""
    return asyncio.run(_nats(count))


async def _loom(count: int, qos: QoS) -> Sample:
    async with (
        node.up(),
        part.started(node.__name__, "hear", 1) as hears,
        _publisher("publish_loom.mjs", _SDK, qos) as publisher,
    ):
        return await _rate(count, hears, publisher)


async def _nats(count: int) -> Sample:
    async with (
        nats.server(),
        part.started(nats.__name__, "hear", 1) as hears,
        _publisher("publish_nats.mjs", _NATS) as publisher,
    ):
        return await _rate(count, hears, publisher)


async def _rate(count: int, hears: part.Part, publisher: part.Part) -> Sample:
    async def send(events: int) -> None:
        await publisher.tell(events)
        await publisher.said()

    await publisher.said()
    return await part.measure_rate(count, hears, send)


@asynccontextmanager
async def _publisher(program: str, needs: str, *arguments: str) -> AsyncGenerator[part.Part]:
    """Run a program in Node.js that publishes as many events as it is told."""
    command = shutil.which("node")
    if command is None:
        raise NotInstalledError("node")
    if not (_MODULES / needs).exists():
        raise NotInstalledError(needs)
    words = (command, str(_HERE / program), encode(EVENT).decode(), *arguments)
    async with part.running(*words) as publisher:
        yield publisher
