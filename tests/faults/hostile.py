"""Peers that keep to no protocol: raw frames of HTTP/2 and of WebSockets, and floods of them.

An attack connects to a node, does its worst, and tells how it ended. It has a credential, or none.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote

from loom.limits import HANDSHAKE_MS

ENOUGH: Final = 8 << 20
"""Bytes that a flood sends at most, in the hope to be ended before."""
SOON: Final = 10.0
"""Seconds in which a node ends what it does not bear."""
SLOWLY: Final = 0.05
"""Seconds between two bytes of one that is slow on purpose."""
_HEARD: Final = 64 << 10
LATE: Final = 3 * HANDSHAKE_MS / 1_000

# The codes of HPACK are canonical: their lengths say all (RFC 7541, appendix B).
_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c"
    "060a0a0c0d06080b0a0a080b080606060505050606060606060607080f060c0a"
    "0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c"
    "1416141416161617161717171717181718181617181717171715161716171718"
    "1615141616171715171616181516171715151617171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
)


class Ended(NamedTuple):
    """How an attack ended: bytes it has sent, and what it was told."""

    sent: int
    status: int | None = None  # of gRPC, of HTTP/2's GOAWAY, of a WebSocket's close
    reason: str = ""


# -- protobuf, as far as it is needed --------------------------------------------------------------


def varint(number: int) -> bytes:
    """Write a number as protobuf does."""
    out = b""
    while number > 0x7F:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))


def field(number: int, value: int | bytes) -> bytes:
    """Write a field: a number, or what has a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def packet(first: int, frame: bytes) -> bytes:
    """Write a packet of one frame."""
    return field(1, first) + field(3, frame)


def hello(token: str) -> bytes:
    """Write the first packet of a session that nobody keeps."""
    said = field(1, b"\x01") + field(2, token.encode()) + field(3, secrets.token_bytes(16))
    credit = field(1, 1_000) + field(2, 1 << 20)
    return packet(
        0, field(1, said + field(4, 1) + field(5, b"evil") + field(10, credit) + field(11, 1))
    )


def groups(depth: int) -> bytes:
    """Write unknown groups, one inside the other."""
    return varint(500 << 3 | 3) * depth + varint(500 << 3 | 4) * depth


# -- HTTP/2 ----------------------------------------------------------------------------------------

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def h2(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    """Write a frame of HTTP/2."""
    return len(data).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + data


def headers(path: str) -> bytes:
    """Write the headers of a gRPC request, none of them compressed."""
    return b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )


ATTACH: Final = headers("/loom.v1.Bridge/Attach")


def grpc(message: bytes, announced: int | None = None) -> bytes:
    """Write a message as gRPC does, with its size before it or another one."""
    size = len(message) if announced is None else announced
    return b"\0" + size.to_bytes(4, "big") + message


class _Hpack:
    """Reads blocks of headers; of the static table only what a gRPC server uses."""

    def __init__(self) -> None:
        self.static = {8: (":status", "200"), 31: ("content-type", ""), 33: ("date", "")}
        self.table: list[tuple[str, str]] = []
        self.codes: dict[tuple[int, int], int] = {}
        code = before = 0
        for symbol in sorted(range(256), key=lambda it: (_LENGTHS[it], it)):
            code <<= _LENGTHS[symbol] - before
            before = _LENGTHS[symbol]
            self.codes[before, code] = symbol
            code += 1

    def read(self, block: bytes) -> dict[str, str]:
        """Return the headers of a block."""
        found: dict[str, str] = {}
        at = 0

        def number(bits: int) -> int:
            nonlocal at
            most = (1 << bits) - 1
            value, at = block[at] & most, at + 1
            shift = 0
            while value >= most and shift >= 0:
                value += (block[at] & 0x7F) << shift
                shift = shift + 7 if block[at] & 0x80 else -1
                at += 1
                if shift < 0:
                    break
            return value

        def text() -> str:
            nonlocal at
            packed = block[at] & 0x80
            size = number(7)
            raw, at = block[at : at + size], at + size
            return self._unpacked(raw) if packed else raw.decode("latin-1")

        while at < len(block):
            first = block[at]
            if first & 0x80:
                name, value = self._entry(number(7))
                found[name] = value
            elif first & 0xE0 == 0x20:
                number(5)
            else:
                kept = first & 0x40
                index = number(6 if kept else 4)
                name = self._entry(index)[0] if index else text()
                found[name] = text()
                if kept:
                    self.table.insert(0, (name, found[name]))
        return found

    def _entry(self, index: int) -> tuple[str, str]:
        return self.static.get(index, (f"#{index}", "")) if index < 62 else self.table[index - 62]

    def _unpacked(self, raw: bytes) -> str:
        out = bytearray()
        size = code = 0
        for bit in "".join(f"{byte:08b}" for byte in raw):
            size, code = size + 1, code << 1 | int(bit)
            if (symbol := self.codes.get((size, code))) is not None:
                out.append(symbol)
                size = code = 0
        return out.decode("latin-1")


class Peer:
    """A connection whose answers are read by a task of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.sent = 0
        self.status: int | None = None
        self.reason = ""
        self.came = asyncio.Event()  # data since somebody waited for it
        self.heard = bytearray()  # the last of it
        self.over = asyncio.Event()  # the connection, or the stream that was told why

    async def send(self, data: bytes) -> bool:
        """Send; False: the connection has ended."""
        if self.over.is_set():
            return False
        try:
            self.writer.write(data)
            async with asyncio.timeout(SOON):
                await self.writer.drain()
        except OSError:
            return False
        self.sent += len(data)
        await asyncio.sleep(0)  # what came is read meanwhile
        return True

    async def flood(self, data: bytes) -> Ended:
        """Send this again and again."""
        while self.sent < ENOUGH and await self.send(data):
            pass
        return await self.ended()

    async def more(self) -> None:
        """Wait until the node says more."""
        self.came.clear()
        await self.came.wait()

    async def ended(self) -> Ended:
        """Wait until it is over."""
        async with asyncio.timeout(SOON):
            await self.over.wait()
        return Ended(self.sent, self.status, self.reason)

    async def reading(self) -> None:
        """Read all that comes."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self.frame()
        self.over.set()

    async def frame(self) -> None:
        """Read one frame."""
        raise NotImplementedError


class Http2(Peer):
    """One that speaks HTTP/2, as far as it likes."""

    _hpack: _Hpack

    async def frame(self) -> None:
        """Read one frame."""
        head = await self.reader.readexactly(9)
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
        data = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        if kind == SETTINGS and not flags & ACK:
            await self.send(h2(SETTINGS, ACK, 0))
        elif kind == GOAWAY and int.from_bytes(data[4:8], "big"):
            self.status, self.reason = int.from_bytes(data[4:8], "big"), data[8:].decode()
        elif kind == DATA:
            self.heard[:] = self.heard[-_HEARD:] + data
            self.came.set()
        elif kind == HEADERS:
            found = self._hpack.read(data)
            if stream == 1 and "grpc-status" in found:
                self.status = int(found["grpc-status"])
                self.reason = unquote(found.get("grpc-message", ""))
                self.over.set()

    async def begin(self, token: str | None) -> None:
        """Open the connection, and attach with a token, if there is one."""
        self._hpack = _Hpack()
        await self.send(PREFACE + h2(SETTINGS, 0, 0))
        if token is not None:
            await self.send(h2(HEADERS, END_HEADERS, 1, ATTACH))
            await self.send(h2(DATA, 0, 1, grpc(hello(token))))
            async with asyncio.timeout(SOON):
                await self.came.wait()

    async def message(self, message: bytes, announced: int | None = None) -> None:
        """Send a message on the first stream, in frames that are not too large."""
        framed = grpc(message, announced)
        for at in range(0, len(framed), 16_384):
            await self.send(h2(DATA, 0, 1, framed[at : at + 16_384]))


# -- WebSockets ------------------------------------------------------------------------------------

TEXT, BINARY, CLOSE, WS_PING = 1, 2, 8, 9


def upgrade(protocol: str, where: "Where") -> bytes:
    """Write the request for a WebSocket."""
    return (
        f"GET /v1/ws HTTP/1.1\r\nHost: {where[0]}:{where[1]}\r\n"
        "Connection: upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    ).encode()


def ws(kind: int, data: bytes, *, announced: int | None = None, is_last: bool = True) -> bytes:
    """Write a frame of a WebSocket, masked with nothing."""
    size = len(data) if announced is None else announced
    if size < 126:
        head = bytes((0x80 | size,))
    elif size < 1 << 16:
        head = b"\xfe" + size.to_bytes(2, "big")
    else:
        head = b"\xff" + size.to_bytes(8, "big")
    return bytes((kind | (0x80 if is_last else 0),)) + head + b"\0\0\0\0" + data


class WebSocket(Peer):
    """One that speaks through a WebSocket, as far as it likes."""

    async def frame(self) -> None:
        """Read one frame."""
        head = await self.reader.readexactly(2)
        size = head[1]
        if size >= 126:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
        data = await self.reader.readexactly(size)
        if head[0] & 15 == CLOSE:
            self.status, self.reason = int.from_bytes(data[:2], "big"), data[2:].decode()
        elif head[0] & 15 in {TEXT, BINARY}:
            self.came.set()

    async def begin(self, where: "Where", token: str | None, protocol: str) -> None:
        """Open the connection, and attach with a token, if there is one."""
        await self.send(upgrade(protocol, where))
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        if token is not None:
            if protocol == "loom.v1.proto":
                await self.send(ws(BINARY, hello(token)))
            else:
                said: dict[str, Any] = {"versions": [1], "token": token, "epoch": 1, "name": "evil"}
                said |= {"session": secrets.token_hex(16), "credit": {"frames": 9, "bytes": 999}}
                await self.send(ws(TEXT, json.dumps({"frames": [{"hello": said}]}).encode()))


Where = tuple[str, int]
P = TypeVar("P", bound=Peer)


@asynccontextmanager
async def dialed(kind: type[P], where: Where) -> AsyncGenerator[P]:
    """A raw connection to a node."""
    peer = kind(*await asyncio.open_connection(*where))
    try:
        yield peer
    finally:
        peer.writer.transport.abort()


@asynccontextmanager
async def http2(where: Where, token: str | None) -> AsyncGenerator[Http2]:
    """A connection of HTTP/2, attached where there is a token."""
    async with dialed(Http2, where) as peer, _read(peer):
        await peer.begin(token)
        yield peer


@asynccontextmanager
async def websocket(
    where: Where, token: str | None, protocol: str = "loom.v1.proto"
) -> AsyncGenerator[WebSocket]:
    """A WebSocket, attached where there is a token."""
    async with dialed(WebSocket, where) as peer:
        await peer.begin(where, token, protocol)
        async with _read(peer):
            if token is not None:
                async with asyncio.timeout(SOON):
                    await peer.came.wait()
            yield peer


@asynccontextmanager
async def _read(peer: Peer) -> AsyncGenerator[None]:
    task = asyncio.create_task(peer.reading())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# -- floods ----------------------------------------------------------------------------------------

Attack = Callable[[Where, str | None], Awaitable[Ended]]


def _flood(data: bytes) -> Attack:
    async def attack(where: Where, token: str | None) -> Ended:
        async with http2(where, token) as peer:
            return await peer.flood(data)

    return attack


async def _continuations(where: Where, token: str | None) -> Ended:
    async with http2(where, token) as peer:
        await peer.send(h2(HEADERS, 0, 3, ATTACH))
        more = b"\0\x01x" + bytes((100,)) + b"y" * 100
        return await peer.flood(h2(CONTINUATION, 0, 3, more) * 8)


async def _rapid_resets(where: Where, token: str | None) -> Ended:
    async with http2(where, token) as peer:
        stream = 3
        while peer.sent < ENOUGH:
            opened = h2(HEADERS, END_HEADERS, stream, ATTACH)
            if not await peer.send(opened + h2(RESET, 0, stream, b"\0\0\0\x08")):
                break
            stream += 2
        return await peer.ended()


async def _ws_pings(where: Where, token: str | None) -> Ended:
    async with websocket(where, token) as peer:
        return await peer.flood(ws(WS_PING, b"x" * 20) * 32)


async def _ws_endless(where: Where, token: str | None) -> Ended:
    async with websocket(where, token) as peer:
        await peer.send(ws(BINARY, b"x", is_last=False))
        return await peer.flood(ws(0, b"x" * 1_000, is_last=False))


FLOODS: Final[Mapping[str, Attack]] = {
    "rapid resets": _rapid_resets,
    "continuations": _continuations,
    "pings": _flood(h2(PING, 0, 0, bytes(8)) * 32),
    "settings": _flood(h2(SETTINGS, 0, 0) * 32),
    "priorities": _flood(h2(PRIORITY, 0, 9, b"\0\0\0\0\x10") * 32),
    "empty data": _flood(h2(DATA, 0, 1) * 32),
    "pings of a websocket": _ws_pings,
    "a message without an end": _ws_endless,
}
"""What comes without an end; the node ends it."""


# -- too large, too deep ---------------------------------------------------------------------------

_LARGE: Final = (64 << 10) + 1
_OPEN: Final = b'{"first":1,"frames":[{"publish":{"ref":1,"topic":"a","payload":{"json":'


async def _grpc_large(where: Where, token: str | None) -> Ended:
    async with http2(where, token) as peer:
        if token is None:
            await peer.send(h2(HEADERS, END_HEADERS, 1, ATTACH))
        await peer.message(b"", announced=_LARGE)
        return await peer.ended()


async def _grpc_deep(where: Where, token: str | None) -> Ended:
    async with http2(where, token) as peer:
        if token is None:
            await peer.send(h2(HEADERS, END_HEADERS, 1, ATTACH))
        await peer.message(packet(1, groups(5_000)))
        return await peer.ended()


async def _ws_large(where: Where, token: str | None) -> Ended:
    async with websocket(where, token) as peer:
        await peer.send(ws(BINARY, b"", announced=_LARGE))
        return await peer.ended()


async def _ws_deep(where: Where, token: str | None) -> Ended:
    async with websocket(where, token) as peer:
        await peer.send(ws(BINARY, packet(1, groups(5_000))))
        return await peer.ended()


async def _json_large(where: Where, token: str | None) -> Ended:
    async with websocket(where, token, "loom.v1.json") as peer:
        await peer.send(ws(TEXT, b"", announced=1 << 31))
        return await peer.ended()


async def _json_deep(where: Where, token: str | None) -> Ended:
    async with websocket(where, token, "loom.v1.json") as peer:
        await peer.send(ws(TEXT, _OPEN + b"[" * 20_000 + b"]" * 20_000 + b"}}}]}"))
        return await peer.ended()


@dataclass(frozen=True)
class Misfit:
    """A packet that no node takes, and what its sender is told."""

    attack: Attack
    status: int
    reason: str


INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 3, 8
WS_PROTOCOL, WS_SIZE = 1002, 1009

MISFITS: Final[Mapping[str, Misfit]] = {
    "large, over gRPC": Misfit(_grpc_large, RESOURCE_EXHAUSTED, "too large"),
    "deep, over gRPC": Misfit(_grpc_deep, INVALID_ARGUMENT, "recursion limit"),
    "large, over a WebSocket": Misfit(_ws_large, WS_SIZE, "too long"),
    "deep, over a WebSocket": Misfit(_ws_deep, WS_PROTOCOL, "recursion limit"),
    "large, in JSON": Misfit(_json_large, WS_SIZE, "too long"),
    "deep, in JSON": Misfit(_json_deep, WS_PROTOCOL, "512 levels deep"),
}


# -- slow ------------------------------------------------------------------------------------------

_BEGUN: Final = PREFACE + h2(SETTINGS, 0, 0)


def _slow(where: Where) -> Mapping[str, tuple[bytes, bytes]]:
    long = hello("x" * 4_000)
    request = upgrade("loom.v1.proto", where)
    return {
        "HTTP/1": (b"", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: b\r\n" * 400),
        "an upgrade": (b"", request[:-2] + b"X-A: b\r\n" * 400),
        "the preface": (PREFACE[:2], PREFACE[2:-1]),
        "settings": (_BEGUN, h2(SETTINGS, 0, 0, b"\0\3\0\0\0\x10" * 400)),
        "headers": (_BEGUN, h2(HEADERS, 0, 1, ATTACH * 40)),
        "a hello over gRPC": (
            _BEGUN + h2(HEADERS, END_HEADERS, 1, ATTACH),
            h2(DATA, 0, 1, grpc(long)),
        ),
        "a hello over a WebSocket": (request, ws(BINARY, long)),
    }


SLOW: Final = tuple(_slow(("", 0)))
"""What comes a byte at a time, behind a beginning that comes at once, and never is all there."""


async def slowly(where: Where, what: str) -> float:
    """Send this a byte at a time; return after how many seconds the node has ended it."""
    at_once, slow = _slow(where)[what]
    loop = asyncio.get_running_loop()
    async with dialed(Raw, where) as peer, _read(peer):
        begin = loop.time()
        await peer.send(at_once)
        for at in range(len(slow)):
            with suppress(TimeoutError):
                async with asyncio.timeout(SLOWLY):
                    await peer.over.wait()
            if loop.time() - begin > LATE or not await peer.send(slow[at : at + 1]):
                break
        else:  # that was all of it
            async with asyncio.timeout(LATE):
                await peer.over.wait()
        return loop.time() - begin


class Raw(Peer):
    """One that does not look at what comes."""

    async def frame(self) -> None:
        """Read some bytes."""
        if not await self.reader.read(1 << 16):
            raise asyncio.IncompleteReadError(b"", None)
