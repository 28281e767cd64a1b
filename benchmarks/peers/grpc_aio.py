"""grpc.aio: a stream of raw bytes from a client to a server, without anything between them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from benchmarks import part
from benchmarks.model import Sample
from benchmarks.peers import servers
from benchmarks.workload import EVENT, Tally, decode, encode

_HERE: Final = "benchmarks.peers.grpc_aio"
_SERVICE: Final = "bench.Readings"
_METHOD: Final = "Send"


def publish(count: int) -> Sample:
    """Write into one stream."""
    return asyncio.run(_publish(count))


async def _publish(count: int) -> Sample:
    grpc = servers.client("grpc")
    async with part.started(_HERE, "hear") as hears:
        port = (await hears.said())["port"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
            await stream.wait_for_connection()

            async def send(events: int) -> None:
                for _ in range(events):
                    await stream.write(encode(EVENT))

            figures = await part.measure_rate(count, hears, send)
            await stream.done_writing()
            return figures


async def hear() -> None:
    """Serve the stream, read the data, and say when all of a phase has come."""
    grpc = servers.client("grpc")
    tally = Tally(0)

    async def listen(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        yield b""  # the client sees its connection by it
        async for data in requests:
            tally.value = decode(data)["sequence"]
            tally.seen += 1
            if tally.seen == tally.total:
                tally.done.set()

    server = grpc.aio.server()
    handlers = {_METHOD: grpc.stream_stream_rpc_method_handler(listen)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    part.say(port=port)
    try:
        await part.tell_phases(tally)
    finally:
        await server.stop(None)
