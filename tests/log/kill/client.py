"""A process that is killed, in Python: ``python -m tests.log.kill.client run|check DIR …``.

``run DIR FIRST COUNT AT_ONCE`` publishes the numbers from FIRST on, acked from the disk, while an
agent handles them. ``check DIR`` reads numbers from its input, waits until the agent has been given
each of them, and then prints what the log has. Each line it prints is whole.
"""

import asyncio
import os
import sys
from pathlib import Path

from pydantic import BaseModel

import loom

LONGEST = 30.0  # seconds until all is redelivered that must be


class Order(BaseModel):
    """What is published."""

    number: int
    publisher: int


app = loom.App("victim")
_handled: set[int] = set()
_more = asyncio.Event()


def tell(*words: object) -> None:
    """Write a line at once: a kill leaves it whole or does not leave it."""
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


@app.agent("worker", topics=["orders.>"], start="beginning", concurrency=8)
async def work(ctx: loom.Context, event: loom.Event[Order]) -> None:
    """Handle an order."""
    await asyncio.sleep(0)
    _handled.add(event.data.number)
    _more.set()
    tell("handled", event.data.number, event.attempt)


async def run(data: Path, first: int, count: int, at_once: int) -> None:
    """Publish, each publisher its numbers in their order."""
    async with app.running(data=data) as ctx:

        async def publish(publisher: int) -> None:
            for number in range(first + publisher, first + count, at_once):
                order = Order(number=number, publisher=publisher)
                receipt = await ctx.emit(
                    "orders.placed", order, ack="disk", id=f"order-{number}", key=str(number)
                )
                tell("acked", number, receipt.position)

        async with asyncio.TaskGroup() as group:
            for publisher in range(at_once):
                group.create_task(publish(publisher))


async def check(data: Path, expected: set[int]) -> None:
    """Wait until all of them were handled; tell what the log has."""
    async with app.running(data=data) as ctx:
        async with asyncio.timeout(LONGEST):
            while not expected <= _handled:
                _more.clear()
                await _more.wait()
        last = (await ctx.emit("orders.last", Order(number=-1, publisher=-1), ack="disk")).position
        async with ctx.watch("orders.>", start="beginning") as events:
            async for event in events:
                if event.position == last:
                    break
                if event.topic == "orders.placed":
                    tell("logged", event.data["number"], event.position)
    tell("done")


def main() -> None:
    """Do what was asked for."""
    word, data, *numbers = sys.argv[1:]
    if word == "run":
        first, count, at_once = map(int, numbers)
        asyncio.run(run(Path(data), first, count, at_once))
    else:
        asyncio.run(check(Path(data), {int(line) for line in sys.stdin}))


if __name__ == "__main__":
    main()
