"""A TCP proxy that does what networks do: delay, trickle, cut, reset, swallow, stand still.

A test stands it before a node and scripts it. It knows no protocol but where the frames of HTTP/2
and of WebSockets end, so that a cut can be put between two of them, or into one.
"""

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self

Way = Literal["up", "down"]
"""From the client to the node, or back."""
Framing = Literal["http2", "websocket"]

_READ: Final = 64 << 10
_H2_PREFACE: Final = 24
_RESET_NOW: Final = struct.pack("ii", 1, 0)  # SO_LINGER of nothing: the end is a RST


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How bytes fare, in seconds and in bytes a second; each way by itself."""

    latency: float = 0.0
    jitter: float = 0.0
    rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a connection ends: behind so many bytes one way, or with frame so and so.

    ``at`` counts bytes; ``frame`` counts frames, of which the last passes only its first ``inside``
    bytes (0: none of it, so the cut is between two frames). ``reset``: with a RST, else with a FIN.
    """

    way: Way
    at: int | None = None
    frame: int | None = None
    inside: int = 0
    reset: bool = False


def _frames_of_http2(*, preface: bool) -> Generator[int, bytes]:
    """Yield how many bytes are needed for the next piece, negative where a frame ends with it.

    Is sent them. What comes before the first frame ends like one.
    """
    if preface:
        yield -_H2_PREFACE
    while True:
        head = yield 9
        yield -int.from_bytes(head[:3], "big")


def _frames_of_websocket() -> Generator[int, bytes]:
    ending = b""
    while ending != b"\r\n\r\n":  # the upgrade
        ending = (ending + (yield 1))[-4:]
    yield 0
    while True:
        head = yield 2
        size = head[1] & 0x7F
        if size >= 126:
            size = int.from_bytes((yield 2 if size == 126 else 8), "big")
        yield -(size + (4 if head[1] & 0x80 else 0))


class _Boundaries:
    """Tells behind which bytes of one way frames end."""

    def __init__(self, pieces: Generator[int, bytes], *, before: int) -> None:
        self._pieces = pieces
        self._want = next(pieces)
        self._have = b""
        self.frames = -before
        self.into = 0  # bytes of the frame that has begun

    def step(self, byte: int) -> None:
        """Take one byte."""
        self.into += 1
        self._have += bytes((byte,))
        while len(self._have) == abs(self._want):
            body = self._want <= 0
            if body:
                self.frames, self.into = self.frames + 1, 0
            taken, self._have = self._have, b""
            self._want = self._pieces.send(taken)

    @classmethod
    def of(cls, framing: Framing, way: Way) -> "_Boundaries":
        if framing == "http2":
            is_up = way == "up"
            return cls(_frames_of_http2(preface=is_up), before=int(is_up))
        return cls(_frames_of_websocket(), before=1)


@dataclass(eq=False)
class _Connection:
    """One client's connection, and the one to the node that is made for it."""

    client: asyncio.StreamWriter
    node: asyncio.StreamWriter
    passed: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    boundaries: dict[Way, _Boundaries] = field(default_factory=dict[Way, _Boundaries])

    def end(self, *, reset: bool) -> None:
        for writer in (self.client, self.node):
            if reset:
                _reset(writer)
            else:
                writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    own: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_NOW)
    writer.transport.abort()


class Proxy:
    """``async with Proxy("127.0.0.1", port) as proxy``: clients connect to ``proxy.address``.

    A node that answers to its own names only is told that address before it starts; then ``target``
    is set when it has.
    """

    def __init__(
        self, host: str = "", port: int = 0, *, framing: Framing | None = None, seed: int = 0
    ) -> None:
        self.target = (host, port)
        self._framing: Framing | None = framing
        self._random = random.Random(seed)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._swallowed: set[Way] = set()
        self._cut: Cut | None = None
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self.weather = Weather()
        self.accepted = 0
        self.cuts = 0
        self.refuses = False
        for way in self._open.values():
            way.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where clients connect to, HOST:PORT."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    # -- scripting --------------------------------------------------------------------------------

    def cut(self, cut: Cut) -> None:
        """Cut the connection that first gets as far as that, from now on; once."""
        self._cut = cut
        for one in self._connections:
            one.passed = {"up": 0, "down": 0}
            for boundaries in one.boundaries.values():
                boundaries.frames = min(boundaries.frames, 0)

    def reset(self) -> None:
        """End all connections with a RST."""
        self._end_all(reset=True)

    def close(self) -> None:
        """End all connections as a server does that goes on purpose."""
        self._end_all(reset=False)

    def pause(self, *ways: Way) -> None:
        """Read no further in these directions: buffers fill up behind it."""
        for way in ways:
            self._open[way].clear()

    def swallow(self, *ways: Way) -> None:
        """Let nothing through in these directions while the connection stands: it is half open."""
        self._swallowed.update(ways)

    def heal(self) -> None:
        """Let everything through again."""
        self._swallowed.clear()
        self.refuses = False
        for way in self._open.values():
            way.set()

    async def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until something about the connections has become true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    @property
    def connections(self) -> int:
        """How many stand."""
        return len(self._connections)

    # -- inside -----------------------------------------------------------------------------------

    def _end_all(self, *, reset: bool) -> None:
        for one in list(self._connections):
            one.end(reset=reset)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self.refuses:
            _reset(client)
            return
        try:
            answers, node = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(client)
            return
        one = _Connection(client, node)
        if self._framing is not None:
            ways: tuple[Way, Way] = ("up", "down")
            one.boundaries = {way: _Boundaries.of(self._framing, way) for way in ways}
        self._connections.add(one)
        self.accepted += 1
        self._changed.set()
        tasks = {
            asyncio.create_task(self._carry(one, "up", reader, node)),
            asyncio.create_task(self._carry(one, "down", answers, client)),
        }
        self._tasks |= tasks
        try:
            await asyncio.wait(tasks)
        finally:
            self._tasks -= tasks
            self._connections.discard(one)
            one.end(reset=False)
            self._changed.set()

    async def _carry(
        self, one: _Connection, way: Way, source: asyncio.StreamReader, to: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while True:
                await self._open[way].wait()
                data = await source.read(_READ)
                if not data:
                    break
                await self._open[way].wait()
                if way in self._swallowed:
                    continue
                await self._delay(len(data))
                through, is_cut = self._as_cut(one, way, data)
                to.write(through)
                await to.drain()
                if is_cut is not None:
                    one.end(reset=is_cut.reset)
                    self._changed.set()
                    return
        if not to.is_closing():  # the end of one side is the end of the other
            to.close()

    async def _delay(self, size: int) -> None:
        seconds = self.weather.latency + self._random.uniform(0, self.weather.jitter)
        if self.weather.rate is not None:
            seconds += size / self.weather.rate
        if seconds:
            await asyncio.sleep(seconds)

    def _as_cut(self, one: _Connection, way: Way, data: bytes) -> tuple[bytes, Cut | None]:
        """Return what of ``data`` goes through, and the cut behind it, if there is one."""
        boundaries, cut = one.boundaries.get(way), self._cut
        if boundaries is None and (cut is None or cut.way != way):
            one.passed[way] += len(data)
            return data, None
        for index, byte in enumerate(data):
            if cut is not None and cut.way == way and _is_reached(cut, one.passed[way], boundaries):
                self._cut = None
                self.cuts += 1
                return data[:index], cut
            one.passed[way] += 1
            if boundaries is not None:
                boundaries.step(byte)
        return data, None


def _is_reached(cut: Cut, passed: int, boundaries: _Boundaries | None) -> bool:
    if cut.frame is None or boundaries is None:
        return cut.at is not None and passed >= cut.at
    ahead = boundaries.frames - cut.frame
    return ahead > 0 or (ahead == 0 and boundaries.into >= cut.inside)
