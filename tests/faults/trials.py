"""Trials of sessions under faults, small in the everyday run and large in ``make prove-bridge``.

Each tells what it did as numbers; what it finds wrong it raises. ``python -m tests.faults.trials
KIND --seed N --wanted N`` runs one and prints its numbers as a line of JSON.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import loom
from loom.address import read_token
from loom.config import LogConfig
from loom.link import Link, Local, open_local, open_remote
from loom.link.local import Served
from tests.faults import hostile
from tests.faults.pairs import SETTLED, Ears, Heard, Publish, in_javascript, in_python
from tests.faults.proxy import Cut, Framing, Proxy, Way
from tests.faults.witness import witness

KEYS: Final = "abcd"
"""Lanes in which the order is checked."""
ALL: Final = ([">"], [">"], [">"], [">"], [">"], [">"])
BLOCKED: Final = 20.0
"""Seconds that the event loop of a client stands still."""

AHEAD: Final = 400
"""Events that may be on their way to their handlers."""

EACH: Final = 10_000
"""Events of each kind that clients get which do not read."""

Told = dict[str, Any]
Language = Literal["python", "javascript"]


@asynccontextmanager
async def node_behind(proxy: Proxy, folder: Path) -> AsyncGenerator[tuple[Local, Served, str]]:
    """A node of this process behind ``proxy``, with its log in ``folder``, and a token for it."""
    secret = f"loom_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).digest()
    node = open_local(log=LogConfig(dir=folder))
    try:
        served = node.serve(
            bind=["127.0.0.1:0"],
            unix=None,
            tls=None,
            origins=[],
            hosts=[proxy.address],
            credentials=[("0a0b0c0d", digest, "*", ALL, None)],
        )
        host, port = served.addresses[0].split(":")
        proxy.target = (host, int(port))
        try:
            yield node, served, secret
        finally:
            served.close()
    finally:
        await node.close()


def pair(
    language: Language, seed: int, url: str, token: str
) -> AbstractAsyncContextManager[tuple[Heard, Publish]]:
    """Make two sessions in that language; those of JavaScript speak protobuf or JSON by turns."""
    if language == "python":
        return in_python(url, token)
    return in_javascript(url, token, protocol=("proto", "json")[seed % 2])


async def logged(node: Local) -> list[int]:
    """Return the data of all orders in the log, in its order."""
    start: str = "beginning"
    found: list[int] = []
    while True:
        events, start, at_end = await node.read("default", ["order.>"], start)
        found += [json.loads(event.payload) for event in events]
        if at_end:
            return found


# -- cuts -----------------------------------------------------------------------------------------


def _some_cut(rng: random.Random) -> Cut:
    ways: tuple[Way, Way] = ("up", "down")
    return Cut(
        way=rng.choice(ways),
        frame=rng.randrange(6),
        inside=rng.choice((0, rng.randint(1, 9), rng.randint(10, 60))),
        reset=rng.random() < 0.5,
    )


@asynccontextmanager
async def beside(url: str, token: str, *, measured: bool) -> AsyncGenerator[Told]:
    """Measure sessions that the fault does not touch, if that is wanted."""
    if not measured:
        yield {}
        return
    async with witness(url, token) as seen:
        yield seen


async def cuts(
    seed: int,
    wanted: int,
    framing: Framing,
    *,
    language: Language = "python",
    measured: bool = False,
) -> Told:
    """Cut connections at frames and inside them, while durable events go to and fro.

    Each event is published once, acked once, is in the log once, and reaches its handler once and
    in the order of its lane.
    """
    rng = random.Random(seed)
    scheme = {"http2": "loom", "websocket": "ws"}[framing]
    published: defaultdict[str, list[int]] = defaultdict(list)
    receipts: set[str] = set()
    number = 0
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        async with (
            Proxy(framing=framing, seed=seed) as proxy,
            node_behind(proxy, Path(folder) / "data") as (node, served, token),
        ):
            url = f"{scheme}://{proxy.address}"
            async with (
                pair(language, seed, url, token) as (ears, publish),
                beside(f"loom://{served.addresses[0]}", token, measured=measured) as seen,
            ):
                async with asyncio.timeout(60 + 2 * wanted):
                    for done in range(wanted):
                        proxy.cut(_some_cut(rng))
                        while proxy.cuts == done:
                            batch = [(number + i, rng.choice(KEYS)) for i in range(4)]
                            number += len(batch)
                            for n, key in batch:
                                published[key].append(n)
                            ids = await asyncio.gather(*(publish(n, key) for n, key in batch))
                            receipts.update(ids)
                await ears.until(lambda: ears.count >= number)
                assert ears.heard == published, "lost, repeated or out of order"
                assert len(receipts) == number
                told = served.stats()
                own = told["attached"] - told["resumed"] - (2 if measured else 0)
                assert (own, told["expired"]) == (2, 0), told
            assert sorted(await logged(node)) == list(range(number))
    return {"cuts": wanted, "events": number, "resumed": told["resumed"], **seen}


# -- kills ----------------------------------------------------------------------------------------


class Up:
    """``loom up`` in a process of its own, which is killed and started again at one place."""

    def __init__(
        self,
        home: Path,
        *,
        host: str = "127.0.0.1",
        words: Sequence[str] = (),
        inside: Sequence[str] = (),
    ) -> None:
        self.home = home
        self.host = host
        self._words = words
        self._inside = inside  # what comes before the command
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port: int = one.getsockname()[1]
        self.token = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where it is, each time."""
        return f"loom://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and return when it can be reached."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith("LOOM_")}
        words = ("up", "--json", "--data", "data", "--bind", f"{self.host}:{self.port}")
        self._process = subprocess.Popen(  # noqa: ASYNC220  it starts while nothing else does
            [*self._inside, sys.executable, "-m", "loom", *words, *self._words],
            env={**variables, "LOOM_HOME": str(self.home)},
            cwd=self.home,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        assert line, f"it ended with {self._process.wait()}"
        self.token = read_token(Path(json.loads(line)["token_file"]))

    def kill(self) -> None:
        """End it as the system does, at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


class Load:
    """Durable orders with ids, no further ahead of what is handled than a moment makes up for."""

    def __init__(self, ears: Heard, publish: Publish, rng: random.Random) -> None:
        self.published: defaultdict[str, list[int]] = defaultdict(list)
        self.number = 0
        self._ears = ears
        self._publish = publish
        self._random = rng

    async def _work(self, over: asyncio.Event) -> None:
        while not over.is_set():
            await self._ears.until(lambda: self._ears.count > self.number - AHEAD)
            batch = [(self.number + i, self._random.choice(KEYS)) for i in range(4)]
            self.number += len(batch)
            for n, key in batch:
                self.published[key].append(n)
            await asyncio.gather(*(self._publish(n, key, id=f"order-{n}") for n, key in batch))

    @asynccontextmanager
    async def going(self) -> AsyncGenerator[None]:
        """Publish as long as this lasts, from when some more was handled on."""
        over = asyncio.Event()
        working = asyncio.create_task(self._work(over))
        try:
            await self.handled(self._random.randint(4, 40))
            yield
            over.set()
            async with asyncio.timeout(SETTLED):
                await working
        finally:
            working.cancel()

    async def handled(self, more: int) -> None:
        """Wait until so many more were handled."""
        target = self._ears.count + more
        await self._ears.until(lambda: self._ears.count >= target)

    async def settled(self) -> int:
        """Wait until each was handled, in the order of its lane; return how many were again."""
        heard = self._ears.heard
        await self._ears.until(lambda: sum(len(set(it)) for it in heard.values()) >= self.number)
        first = {key: list(dict.fromkeys(seen)) for key, seen in heard.items()}
        assert first == self.published, "lost, or out of order"
        return self._ears.count - self.number

    async def kept(self, up: "Up") -> None:
        """Hold what is in the log of the node against what was published."""
        kept: list[int] = []
        async with (
            loom.connect(up.url, token=up.token) as ctx,
            ctx.watch("order.>", start="beginning") as events,
            asyncio.timeout(SETTLED),
        ):
            while len(kept) < self.number:
                kept.append((await anext(events)).data)
        assert sorted(kept) == list(range(self.number)), "in the log twice, or not at all"


async def kills(seed: int, wanted: int, *, language: Language = "python") -> Told:
    """Kill a node again and again while durable events with ids go through it.

    What was acked is in the log once, and each event is handled in the end, in the order of its
    lane where it comes for the first time.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        up = Up(Path(folder))
        await up.start()
        try:
            async with pair(language, seed, up.url, up.token) as (ears, publish):
                load = Load(ears, publish, rng)
                for _ in range(wanted):
                    async with load.going():
                        up.kill()
                        await up.start()
                again = await load.settled()
            await load.kept(up)
        finally:
            up.kill()
    return {"kills": wanted, "events": load.number, "handled_again": again}


# -- many, silent, frozen -------------------------------------------------------------------------


async def storm(seed: int, wanted: int) -> Told:
    """Kill a node with many clients and start it again; tell when all are back."""
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        up = Up(Path(folder))
        await up.start()
        try:
            engines = [open_remote(up.url, up.token) for _ in range(wanted)]
            links: list[Link] = [
                one.attach("default", f"client{n}") for n, one in enumerate(engines)
            ]
            await asyncio.gather(*(link.connected() for link in links))
            changed = [link.changes for link in links]
            up.kill()
            await up.start()
            begin = time.monotonic()
            async with asyncio.timeout(SETTLED):
                while not all(  # noqa: ASYNC110  a thousand links
                    link.state == "up" and link.changes > before
                    for link, before in zip(links, changed, strict=True)
                ):
                    await asyncio.sleep(0.02)
            seconds = time.monotonic() - begin
            for link in links:
                link.close()
            await asyncio.gather(*(one.close() for one in engines))
        finally:
            up.kill()
    return {"clients": wanted, "slowest_s": round(seconds, 2)}


async def half_open(seed: int, wanted: int) -> Told:
    """Let connections go silent, one way or both; tell when both ends have found out."""
    rng = random.Random(seed)
    ways: tuple[tuple[Way, ...], ...] = (("up",), ("down",), ("up", "down"))
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:

        async def one(number: int) -> float:
            async with (
                Proxy(seed=rng.randrange(1 << 30)) as proxy,
                node_behind(proxy, Path(folder) / str(number)) as (_, served, token),
                Ears().app.running(url=f"loom://{proxy.address}", token=token) as ctx,
            ):
                begin = time.monotonic()
                async with ctx.watch("loom.link.*") as changes, asyncio.timeout(40):
                    proxy.swallow(*ways[number % 3])
                    assert (await anext(changes)).topic == "loom.link.lost"
                    took = time.monotonic() - begin
                    proxy.heal()
                    while (await anext(changes)).topic != "loom.link.up":
                        pass
                assert served.stats()["expired"] == 0
                return took

        slowest = max(await asyncio.gather(*(one(n) for n in range(wanted))))
    assert slowest <= 21.0, f"{slowest:.1f} s: silence is found in 15 s, after at most 5 s of life"
    return {"peers": wanted, "slowest_s": round(slowest, 1)}


async def blocked(seed: int, wanted: int) -> Told:
    """Let the event loop of a client stand still for 20 s; its session goes on."""
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        up = Up(Path(folder))
        await up.start()
        try:
            ears = Ears()
            async with ears.app.running(url=up.url, token=up.token) as ctx:
                for n in range(wanted):
                    async with ctx.watch("loom.link.*") as changes:
                        time.sleep(BLOCKED)  # noqa: ASYNC251  that is the fault
                        await ctx.emit("order.new", n, key="a", ack="os")
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.5):
                                raise AssertionError(f"{await anext(changes)!r}")
                await ears.until(lambda: ears.count == wanted)
        finally:
            up.kill()
    return {"sessions_kept": wanted, "seconds_blocked": BLOCKED}


async def attacks(seed: int, wanted: int) -> Told:
    """Let peers that keep to no protocol do their worst, two at a time; each is ended."""
    rng = random.Random(seed)
    all_of_them: list[hostile.Attack] = [
        *hostile.FLOODS.values(),
        *(misfit.attack for misfit in hostile.MISFITS.values()),
    ]
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        up = Up(Path(folder))
        await up.start()
        try:
            async with witness(up.url, up.token) as seen:
                for n in range(0, wanted, 2):
                    attack = all_of_them[(n // 2) % len(all_of_them)]
                    two = (attack, rng.choice(all_of_them))
                    tokens = (up.token, None)
                    where = (up.host, up.port)
                    await asyncio.gather(
                        *(one(where, token) for one, token in zip(two, tokens, strict=True))
                    )
        finally:
            up.kill()
    return {"attacks": wanted, **seen}


async def slow_readers(seed: int, wanted: int) -> Told:
    """Send to clients that read nothing; the one that sends and the ones beside it go on."""
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        up = Up(Path(folder))
        await up.start()
        try:
            async with (
                AsyncExitStack() as stack,
                witness(up.url, up.token) as seen,
                loom.connect(up.url, token=up.token) as ctx,
            ):
                all_ears: list[Ears] = []
                for n in range(wanted):
                    proxy = await stack.enter_async_context(Proxy(up.host, up.port, seed=seed + n))
                    ears = Ears()
                    ears.app.name = f"slow{n}"
                    url = f"loom://{proxy.address}"
                    await stack.enter_async_context(ears.app.running(url=url, token=up.token))
                    proxy.pause("down")
                    stack.callback(proxy.heal)
                    all_ears.append(ears)
                data = "x" * 10_000
                async with asyncio.timeout(SETTLED):
                    for _ in range(EACH):
                        await ctx.emit("other.new", data, ack="os")
                        await ctx.emit("order.new", 1, key="a", ack="os")
                assert all(ears.count < EACH for ears in all_ears)
        finally:
            up.kill()
    return {"readers": wanted, "events": 2 * EACH, **seen}


KINDS: Final[Mapping[str, Callable[[int, int], Awaitable[Told]]]] = {
    "cuts-grpc": lambda seed, wanted: cuts(seed, wanted, "http2", measured=True),
    "cuts-websocket": lambda seed, wanted: cuts(seed, wanted, "websocket", measured=True),
    "cuts-javascript": lambda seed, wanted: cuts(seed, wanted, "websocket", language="javascript"),
    "hostile": attacks,
    "slow-readers": slow_readers,
    "kills": kills,
    "kills-javascript": lambda seed, wanted: kills(seed, wanted, language="javascript"),
    "storm": storm,
    "half-open": half_open,
    "blocked": blocked,
}


def main() -> None:
    """Run one trial and print what it tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wanted", type=int, required=True)
    given = parser.parse_args()
    begin = time.monotonic()
    trial = KINDS[given.kind]
    told = asyncio.run(_awaited(trial(given.seed, given.wanted)))
    seconds = round(time.monotonic() - begin, 1)
    print(json.dumps({**told, "failures": [], "seeds": f"from {given.seed}", "seconds": seconds}))


async def _awaited(trial: Awaitable[Told]) -> Told:
    return await trial


if __name__ == "__main__":
    main()
