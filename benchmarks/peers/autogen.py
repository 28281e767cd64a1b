"""AutoGen core's ``SingleThreadedAgentRuntime`` as it comes, with the same event as a dataclass."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Any

from benchmarks.model import NotInstalledError, Sample
from benchmarks.peers.processes import memory_since, resident
from benchmarks.workload import EVENT, FAN, Tally, measure_rate, measure_requests


@dataclass
class Reading:
    """The event. AutoGen knows messages by their class."""

    sensor: str
    sequence: int
    celsius: float
    note: str


READING = Reading(**EVENT)


def publish(count: int) -> Sample:
    """Publish to one agent that reads the message."""
    return asyncio.run(_publish(count, 1))


def fan_out(count: int) -> Sample:
    """Publish to a topic that a hundred agents have subscribed to."""
    return asyncio.run(_publish(count, FAN))


def ask(count: int) -> Sample:
    """Send a message and await its answer, one at a time."""
    return asyncio.run(_ask(count, 1))


def ask_concurrently(count: int) -> Sample:
    """Send messages and await their answers, 64 at a time."""
    return asyncio.run(_ask(count, 64))


def register(count: int) -> Sample:
    """Register agents, each of which has subscribed to a topic of its own."""
    return asyncio.run(_register(count))


def _core() -> Any:
    try:
        return import_module("autogen_core")
    except ModuleNotFoundError:
        raise NotInstalledError("autogen-core") from None


async def _publish(count: int, receivers: int) -> Sample:
    core = _core()
    tally = Tally(0)

    class Listener(core.RoutedAgent):
        @core.message_handler
        async def on_reading(self, message: Reading, ctx: Any) -> None:
            tally.value = message.sequence
            tally.seen += 1
            if tally.seen == tally.total:
                tally.done.set()

    topic = core.TopicId("readings", source="bench")

    async with _runtime(core) as runtime:
        for number in range(receivers):
            name = f"listener_{number}"
            await Listener.register(runtime, name, lambda: Listener("listens"))
            await runtime.add_subscription(core.TypeSubscription("readings", name))

        async def send(number: int) -> None:
            for _ in range(number):
                await runtime.publish_message(READING, topic)

        return await measure_rate(count, tally, send, receivers=receivers)


async def _ask(count: int, concurrency: int) -> Sample:
    core = _core()

    class Answerer(core.RoutedAgent):
        @core.message_handler
        async def on_reading(self, message: Reading, ctx: Any) -> Reading:
            return message

    async with _runtime(core) as runtime:
        await Answerer.register(runtime, "answerer", lambda: Answerer("answers"))
        answerer = core.AgentId("answerer", "default")

        async def ask_one() -> int:
            return (await runtime.send_message(READING, answerer)).sequence

        return await measure_requests(count, concurrency, ask_one)


async def _register(count: int) -> Sample:
    core = _core()

    class Listener(core.RoutedAgent):
        @core.message_handler
        async def on_reading(self, message: Reading, ctx: Any) -> None:
            """Never called."""

    async with _runtime(core):
        empty = resident()
    async with _runtime(core) as runtime:
        start = perf_counter()
        for number in range(count):
            name = f"agent_{number}"
            await Listener.register(runtime, name, lambda: Listener("listens"))
            await runtime.add_subscription(core.TypeSubscription(f"readings.{number}", name))
        seconds = perf_counter() - start
        return {"time": seconds * 1e3, **memory_since(empty)}


@asynccontextmanager
async def _runtime(core: Any) -> AsyncGenerator[Any]:
    runtime = core.SingleThreadedAgentRuntime()
    runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()
