"""ZeroMQ: PUB and SUB by ``zmq.asyncio``, from process to process with nothing between them."""

import asyncio
from contextlib import suppress
from typing import Any, Final

from benchmarks import part
from benchmarks.model import Sample
from benchmarks.peers import servers
from benchmarks.workload import EVENT, Tally, decode, encode

_HERE: Final = "benchmarks.peers.zeromq"
_TOPIC: Final = b"readings.hall"
_UNBOUNDED: Final = 0  # what it calls a high-water mark: else PUB drops without a word


def publish(count: int) -> Sample:
    """Publish to one subscriber."""
    return asyncio.run(_publish(count))


async def _publish(count: int) -> Sample:
    zmq = servers.client("zmq.asyncio")
    context = zmq.Context()
    socket = context.socket(servers.client("zmq").PUB)
    socket.sndhwm = _UNBOUNDED
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    try:
        async with part.started(_HERE, "hear", port) as hears:
            subscribed = asyncio.create_task(_greet(socket))

            async def send(events: int) -> None:
                subscribed.cancel()
                for _ in range(events):
                    await socket.send_multipart((_TOPIC, encode(EVENT)))

            return await part.measure_rate(count, hears, send)
    finally:
        socket.close(linger=0)
        context.term()


async def _greet(socket: Any) -> None:
    """Say something until the subscriber has heard of it: it takes a while to be connected."""
    while True:
        await socket.send_multipart((b"hello", b""))
        await asyncio.sleep(0.01)


async def hear(port: str) -> None:
    """Subscribe, read the data, and say when all of a phase has come."""
    zmq = servers.client("zmq.asyncio")
    names = servers.client("zmq")
    context = zmq.Context()
    socket = context.socket(names.SUB)
    socket.rcvhwm = _UNBOUNDED
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.subscribe(b"")
    await socket.recv_multipart()  # the greeting
    tally = Tally(0)

    async def listen() -> None:
        while True:
            topic, data = await socket.recv_multipart()
            if topic != _TOPIC:
                continue
            tally.value = decode(data)["sequence"]
            tally.seen += 1
            if tally.seen == tally.total:
                tally.done.set()

    listening = asyncio.create_task(listen())
    try:
        await part.tell_phases(tally)
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        socket.close(linger=0)
        context.term()
