"""The proxy does what it is told: a fault that it does not make would prove nothing."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from tests.faults.proxy import Cut, Framing, Proxy, Weather

pytestmark = pytest.mark.requirement("FAULT-PROXY")


class Echo:
    """A server that sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.got += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.ended.set()


@asynccontextmanager
async def proxied(framing: Framing | None = None) -> AsyncGenerator[tuple[Echo, Proxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    async with Proxy("127.0.0.1", echo.port, framing=framing) as proxy:
        yield echo, proxy
    server.close()
    await server.wait_closed()


Line = Callable[[Proxy], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@pytest.fixture
async def line() -> AsyncGenerator[Line]:
    """Connections through a proxy, which end with the test."""
    writers: list[asyncio.StreamWriter] = []

    async def dial(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = proxy.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        return reader, writer

    yield dial
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_bytes_go_through_both_ways_unchanged(line: Line) -> None:
    async with proxied() as (echo, proxy):
        reader, writer = await line(proxy)
        sent = bytes(range(256)) * 4_000
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        writer.write_eof()
        await echo.ended.wait()
    assert echo.got == sent


@pytest.mark.parametrize("at", [0, 1, 17, 64])
async def test_a_cut_lets_through_exactly_what_is_before_it(at: int, line: Line) -> None:
    async with proxied() as (echo, proxy):
        reader, writer = await line(proxy)
        proxy.cut(Cut(way="up", at=at))
        writer.write(b"x" * 65)
        assert await reader.read() == b""
        await echo.ended.wait()
        assert (len(echo.got), proxy.cuts) == (at, 1)


async def test_a_cut_of_what_comes_back_leaves_what_went_there(line: Line) -> None:
    async with proxied() as (echo, proxy):
        reader, writer = await line(proxy)
        proxy.cut(Cut(way="down", at=3))
        writer.write(b"0123456789")
        assert await reader.read() == b"012"
        assert echo.got == b"0123456789"


async def test_a_reset_is_no_clean_end(line: Line) -> None:
    async with proxied() as (_, proxy):
        reader, writer = await line(proxy)
        writer.write(b"a")
        await reader.readexactly(1)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        again, other = await line(proxy)
        other.write(b"b")
        assert await again.readexactly(1) == b"b"
        proxy.close()
        assert await again.read() == b""


@pytest.mark.parametrize("way", ["up", "down"])
async def test_what_is_paused_comes_later_and_what_is_swallowed_never(way: str, line: Line) -> None:
    one: tuple[str] = (way,)
    async with proxied() as (_, proxy):
        reader, writer = await line(proxy)
        proxy.pause(*one)  # pyright: ignore[reportArgumentType]
        writer.write(b"late")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read(1)
        proxy.heal()
        assert await reader.readexactly(4) == b"late"
        proxy.swallow(*one)  # pyright: ignore[reportArgumentType]
        writer.write(b"gone")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read(1)
        assert proxy.connections == 1
        proxy.heal()
        writer.write(b"here")
        assert await reader.readexactly(4) == b"here"


async def test_weather_slows_and_loses_nothing(line: Line) -> None:
    async with proxied() as (_, proxy):
        proxy.weather = Weather(latency=0.02, jitter=0.01, rate=1_000_000)
        reader, writer = await line(proxy)
        begin = asyncio.get_running_loop().time()
        writer.write(b"y" * 30_000)
        assert await reader.readexactly(30_000) == b"y" * 30_000
        # never less: there and back, and what the rate makes of the size
        assert asyncio.get_running_loop().time() - begin >= 2 * 0.02 + 2 * 0.03


def http2(*sizes: int) -> bytes:
    head = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return head + b"".join(n.to_bytes(3, "big") + b"\0\0\0\0\0\1" + b"d" * n for n in sizes)


def websocket(*sizes: int) -> bytes:
    out = b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n\r\n"
    for n in sizes:
        out += b"\x82" + (
            bytes((0x80 | n,))
            if n < 126
            else (b"\xfe" + n.to_bytes(2, "big") if n < 1 << 16 else b"\xff" + n.to_bytes(8, "big"))
        )
        out += b"mask" + b"d" * n
    return out


@pytest.mark.parametrize(("framing", "made"), [("http2", http2), ("websocket", websocket)])
@pytest.mark.parametrize("inside", [0, 5])
async def test_a_cut_can_be_put_between_two_frames_and_into_one(
    framing: Framing, made: Callable[..., bytes], inside: int, line: Line
) -> None:
    sizes = (10, 0, 300, 70_000, 20)
    whole = made(*sizes)
    for frame in range(len(sizes)):
        async with proxied(framing) as (echo, proxy):
            proxy.cut(Cut(way="up", frame=frame, inside=inside))
            _, writer = await line(proxy)
            writer.write(whole)
            await echo.ended.wait()
            before = len(made(*sizes[:frame]))
            assert len(echo.got) == before + inside


async def test_who_is_refused_is_told_at_once(line: Line) -> None:
    async with proxied() as (_, proxy):
        proxy.refuses = True
        reader, _ = await line(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        proxy.heal()
        assert proxy.accepted == 0
