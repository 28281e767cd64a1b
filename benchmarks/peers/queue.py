"""``asyncio.Queue(1024)``: what handing events from one task to another costs at the least.

No topic, no ids, no bytes: the receiver gets the sender's own object.
"""

import asyncio
from typing import Any, Final

from benchmarks.model import Sample
from benchmarks.workload import EVENT, FAN, Reading, Tally, decode, encode, measure_rate

ROOM: Final = 1024


def hand_off(count: int) -> Sample:
    """Hand the object over and read it in the receiving task's loop."""
    return asyncio.run(_hand_off(count))


def hand_off_json(count: int) -> Sample:
    """Hand over JSON, decode it, and await a handler: the work of an event, without the engine."""
    return asyncio.run(_hand_off_json(count))


def fan_out(count: int) -> Sample:
    """Hand the object to each of a hundred tasks, through a queue of its own."""
    return asyncio.run(_hand_off(count, FAN))


async def _hand_off(count: int, receivers: int = 1) -> Sample:
    queues: list[asyncio.Queue[Reading]] = [asyncio.Queue(ROOM) for _ in range(receivers)]
    tally = Tally(0)

    async def receive(queue: asyncio.Queue[Reading]) -> None:
        while True:
            event = await queue.get()
            tally.value = event["sequence"]
            tally.seen += 1
            if tally.seen == tally.total:
                tally.done.set()

    async def send(number: int) -> None:
        for _ in range(number):
            for queue in queues:
                await queue.put(EVENT)

    tasks = [asyncio.create_task(receive(queue)) for queue in queues]
    try:
        return await measure_rate(count, tally, send, receivers=receivers)
    finally:
        for task in tasks:
            task.cancel()


async def _hand_off_json(count: int) -> Sample:
    queue: asyncio.Queue[bytes] = asyncio.Queue(ROOM)
    tally = Tally(0)

    async def handle(event: dict[str, Any]) -> None:
        tally.value = event["sequence"]
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()

    async def receive() -> None:
        while True:
            await handle(decode(await queue.get()))

    async def send(number: int) -> None:
        for _ in range(number):
            await queue.put(encode(EVENT))

    receiver = asyncio.create_task(receive())
    try:
        return await measure_rate(count, tally, send)
    finally:
        receiver.cancel()
