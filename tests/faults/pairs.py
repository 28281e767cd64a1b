"""Two sessions for a trial, in Python or in JavaScript: one publishes orders, one hears them."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import loom

ROOT: Final = Path(__file__).resolve().parents[2]
WORKER: Final = ROOT / "js" / "sdk" / "tests" / "support" / "faults.ts"
SETTLED: Final = 60.0
"""Seconds in which everything must have come when the faults are over."""
LINE: Final = 1 << 20
"""Bytes of the longest line that a worker tells."""


class Heard:
    """The orders that one session heard, in each lane."""

    def __init__(self) -> None:
        self.heard: defaultdict[str, list[int]] = defaultdict(list)
        self.count = 0
        self._came = asyncio.Event()

    def hear(self, key: str, n: int) -> None:
        """Take one down."""
        self.heard[key].append(n)
        self.count += 1
        self._came.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it has heard what makes ``condition`` true."""
        async with asyncio.timeout(SETTLED):
            while not condition():
                self._came.clear()
                await self._came.wait()


class Ears(Heard):
    """An app that hears durable orders."""

    def __init__(self) -> None:
        super().__init__()
        self.app = loom.App("ears")

        @self.app.agent("ears", topics=["order.>"], concurrency=8)
        async def ears(ctx: loom.Context, event: loom.Event[int]) -> None:
            self.hear(event.key or "", event.data)


class Publish(Protocol):
    """Publishes an order that the system is to have, and returns the id of its event."""

    async def __call__(self, n: int, key: str, /, *, id: str | None = None) -> str: ...


@asynccontextmanager
async def in_python(url: str, token: str) -> AsyncGenerator[tuple[Heard, Publish]]:
    """Two apps of this process."""
    ears, talker = Ears(), loom.App("talker")
    async with (
        ears.app.running(url=url, token=token),
        talker.running(url=url, token=token) as ctx,
    ):

        async def publish(n: int, key: str, /, *, id: str | None = None) -> str:
            return (await ctx.emit("order.new", n, key=key, ack="os", id=id)).id

        yield ears, publish


@asynccontextmanager
async def in_javascript(
    url: str, token: str, *, protocol: str = "proto"
) -> AsyncGenerator[tuple[Heard, Publish]]:
    """Two sessions of a process of Node.js, which is told what to publish line by line."""
    heard = Heard()
    acks: dict[int, asyncio.Future[str]] = {}
    node = shutil.which("node")
    assert node is not None, "the trials of JavaScript need Node.js"
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        program = Path(folder) / "faults.mjs"
        _bundle(program)
        worker = await asyncio.create_subprocess_exec(
            *(node, str(program), protocol),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LINE,
            env={**os.environ, "LOOM_URL": url, "LOOM_TOKEN": token},
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        sink, source = worker.stdin, worker.stdout

        async def listen() -> None:
            async for line in source:
                told: dict[str, Any] = json.loads(line)
                if "heard" in told:
                    heard.hear(told["key"], told["heard"])
                elif "acked" in told:
                    acks.pop(told["acked"]).set_result(told["id"])
                elif "failed" in told:
                    acks.pop(told["failed"]).set_exception(AssertionError(told["error"]))
            for left in acks.values():
                left.set_exception(AssertionError("the program in JavaScript has ended"))

        async def publish(n: int, key: str, /, *, id: str | None = None) -> str:
            acks[n] = asyncio.get_running_loop().create_future()
            order = {"n": n, "key": key} if id is None else {"n": n, "key": key, "id": id}
            sink.write(json.dumps(order).encode() + b"\n")
            return await acks[n]

        async with asyncio.timeout(SETTLED):
            assert json.loads(await source.readline()) == {"ready": True}
        listening = asyncio.create_task(listen())
        try:
            yield heard, publish
            sink.close()  # it leaves the node in order, and ends
            async with asyncio.timeout(SETTLED):
                assert await worker.wait() == 0
        finally:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
            await listening


def _bundle(program: Path) -> None:
    """Write the worker and the SDK that it uses as one file."""
    words = ("--platform", "node", "--format", "esm", "--file", str(program))
    bundler = ROOT / "node_modules" / ".bin" / "rolldown"
    made = subprocess.run([bundler, str(WORKER), *words], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
