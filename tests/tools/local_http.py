"""An HTTP server on loopback for tests: it answers with what a function returns."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """A status and a body. With ``hold`` the connection stays open after it, for ever."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    hold: bool = False


def as_json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value).encode(), status)


def completion(
    content: str | None, *, reason: str = "stop", refusal: str | None = None
) -> Response:
    """What OpenAI and those like it answer."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return as_json(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "small-2026-01-01",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
        }
    )


@dataclass(slots=True)
class Server:
    url: str
    requests: list[Request] = field(default_factory=list[Request])
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    closed_early: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def serving(answer: Callable[[Request], Response]) -> AsyncGenerator[Server, None]:
    """Serve on a free port until the block is left."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            request = await _read(reader)
            server.requests.append(request)
            server.arrived.set()
            response = answer(request)
            length = "" if response.hold else f"Content-Length: {len(response.body)}\r\n"
            writer.write(
                f"HTTP/1.1 {response.status} Told\r\nContent-Type: {response.content_type}\r\n"
                f"{length}Connection: close\r\n\r\n".encode()
                + response.body
            )
            await writer.drain()
            if response.hold:
                await reader.read()  # until the other side goes
                server.closed_early.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            server.closed_early.set()
        finally:
            tasks.discard(task)
            writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}")
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return Request(method, parts.path, query, headers, body)
