"""AutoGen's distributed runtime: its host in a process, and a worker in each of two, over gRPC."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from benchmarks import part
from benchmarks.model import Sample
from benchmarks.peers import servers
from benchmarks.peers.autogen import READING, Reading
from benchmarks.workload import Tally, measure_requests

_HERE: Final = "benchmarks.peers.autogen_grpc"


def publish(count: int) -> Sample:
    """Publish to one agent in another process."""
    return asyncio.run(_publish(count))


def ask(count: int, concurrency: int) -> Sample:
    """Send messages to an agent in another process, and await its answers."""
    return asyncio.run(_ask(count, concurrency))


@asynccontextmanager
async def _worker(address: str) -> AsyncGenerator[tuple[Any, Any]]:
    core = servers.client("autogen_core")
    worker = servers.client("autogen_ext.runtimes.grpc").GrpcWorkerAgentRuntime(address)
    worker.add_message_serializer(core.try_get_known_serializers_for_type(Reading))
    await worker.start()
    try:
        yield core, worker
    finally:
        await worker.stop()


@asynccontextmanager
async def _host() -> AsyncGenerator[str]:
    servers.client("autogen_ext.runtimes.grpc")
    address = f"127.0.0.1:{servers.free_port()}"
    async with part.started(_HERE, "serve", address) as host:
        await host.said()
        yield address


async def serve(address: str) -> None:
    """Run the host."""
    host = servers.client("autogen_ext.runtimes.grpc").GrpcWorkerAgentRuntimeHost(address)
    host.start()
    await part.stay()
    await host.stop()


async def _publish(count: int) -> Sample:
    async with (
        _host() as address,
        part.started(_HERE, "hear", address) as hears,
        _worker(address) as (core, worker),
    ):
        topic = core.TopicId("readings", source="bench")

        async def send(events: int) -> None:
            for _ in range(events):
                await worker.publish_message(READING, topic)

        return await part.measure_rate(count, hears, send)


async def hear(address: str) -> None:
    """Subscribe an agent that reads the data, and say when all of a phase has come."""
    tally = Tally(0)
    async with _worker(address) as (core, worker):

        class Listener(core.RoutedAgent):
            @core.message_handler
            async def on_reading(self, message: Reading, ctx: Any) -> None:
                tally.value = message.sequence
                tally.seen += 1
                if tally.seen == tally.total:
                    tally.done.set()

        await Listener.register(worker, "listener", lambda: Listener("listens"))
        await worker.add_subscription(core.TypeSubscription("readings", "listener"))
        await part.tell_phases(tally)


async def _ask(count: int, concurrency: int) -> Sample:
    async with (
        _host() as address,
        part.started(_HERE, "answer", address) as answers,
        _worker(address) as (core, worker),
    ):
        await answers.said()
        answerer = core.AgentId("answerer", "default")

        async def ask_one() -> int:
            return (await worker.send_message(READING, answerer)).sequence

        return await measure_requests(count, concurrency, ask_one)


async def answer(address: str) -> None:
    """Register an agent that answers with what it was sent."""
    async with _worker(address) as (core, worker):

        class Answerer(core.RoutedAgent):
            @core.message_handler
            async def on_reading(self, message: Reading, ctx: Any) -> Reading:
                return message

        await Answerer.register(worker, "answerer", lambda: Answerer("answers"))
        await part.stay()
