"""A task per event, at most 256 at a time: JSON out, JSON in, and a handler that is awaited."""

import asyncio
from typing import Any, Final

from benchmarks.model import Sample
from benchmarks.workload import EVENT, Tally, decode, encode, measure_rate

IN_FLIGHT: Final = 256


def task_per_event(count: int) -> Sample:
    """Handlers that never suspend."""
    return asyncio.run(_run(count, suspends=False))


def task_per_event_suspending(count: int) -> Sample:
    """Handlers that suspend once."""
    return asyncio.run(_run(count, suspends=True))


async def _run(count: int, *, suspends: bool) -> Sample:
    tally = Tally(0)
    room = asyncio.Semaphore(IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(event: dict[str, Any]) -> None:
        value = event["sequence"]
        if suspends:
            await asyncio.sleep(0)
        tally.value = value
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()

    async def one(payload: bytes) -> None:
        try:
            await handle(decode(payload))
        finally:
            room.release()

    async def send(number: int) -> None:
        for _ in range(number):
            await room.acquire()
            task = asyncio.create_task(one(encode(EVENT)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    return await measure_rate(count, tally, send)
