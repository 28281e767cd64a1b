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
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import loom
from loom.address import read_token
from loom.config import LogConfig
from loom.link import Link, Local, open_local, open_remote
from loom.link.local import Served
from tests.faults.proxy import Cut, Framing, Proxy, Way

KEYS: Final = "abcd"
"""Lanes in which the order is checked."""
ALL: Final = ([">"], [">"], [">"], [">"], [">"], [">"])
SETTLED: Final = 60.0
"""Seconds in which everything must have come when the faults are over."""

BLOCKED: Final = 20.0
"""Seconds that the event loop of a client stands still."""

AHEAD: Final = 400
"""Events that may be on their way to their handlers."""

Told = dict[str, Any]


class Ears:
    """An app that hears durable orders, and what it heard in each lane."""

    def __init__(self) -> None:
        self.app = loom.App("ears")
        self.heard: defaultdict[str, list[int]] = defaultdict(list)
        self.count = 0
        self._came = asyncio.Event()

        @self.app.agent("ears", topics=["order.>"], concurrency=8)
        async def ears(ctx: loom.Context, event: loom.Event[int]) -> None:
            self.heard[event.key or ""].append(event.data)
            self.count += 1
            self._came.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it has heard what makes ``condition`` true."""
        async with asyncio.timeout(SETTLED):
            while not condition():
                self._came.clear()
                await self._came.wait()


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
            origins=[f"http://{proxy.address}"],
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


async def cuts(seed: int, wanted: int, framing: Framing) -> Told:
    """Cut connections at frames and inside them, while durable events go to and fro.

    Each event is published once, acked once, is in the log once, and reaches its handler once and
    in the order of its lane.
    """
    rng = random.Random(seed)
    scheme = {"http2": "loom", "websocket": "ws"}[framing]
    ears, talker = Ears(), loom.App("talker")
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
                ears.app.running(url=url, token=token),
                talker.running(url=url, token=token) as ctx,
            ):

                async def publish(n: int, key: str) -> None:
                    receipt = await ctx.emit("order.new", n, key=key, ack="os")
                    receipts.add(receipt.id)

                async with asyncio.timeout(60 + 2 * wanted):
                    for done in range(wanted):
                        proxy.cut(_some_cut(rng))
                        while proxy.cuts == done:
                            batch = [(number + i, rng.choice(KEYS)) for i in range(4)]
                            number += len(batch)
                            for n, key in batch:
                                published[key].append(n)
                            await asyncio.gather(*(publish(*one) for one in batch))
                await ears.until(lambda: ears.count >= number)
                assert ears.heard == published, "lost, repeated or out of order"
                assert len(receipts) == number
                told = served.stats()
                assert (told["attached"] - told["resumed"], told["expired"]) == (2, 0), told
            assert sorted(await logged(node)) == list(range(number))
    return {"cuts": wanted, "events": number, "resumed": told["resumed"]}


# -- kills ----------------------------------------------------------------------------------------


class Up:
    """``loom up`` in a process of its own, which is killed and started again at one place."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port: int = one.getsockname()[1]
        self.token = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where it is, each time."""
        return f"loom://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and return when it can be reached."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith("LOOM_")}
        words = ("up", "--json", "--data", "data", "--bind", f"127.0.0.1:{self.port}")
        self._process = subprocess.Popen(  # noqa: ASYNC220  it starts while nothing else does
            [sys.executable, "-m", "loom", *words],
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


async def kills(seed: int, wanted: int) -> Told:
    """Kill a node again and again while durable events with ids go through it.

    What was acked is in the log once, and each event is handled in the end, in the order of its
    lane where it comes for the first time.
    """
    rng = random.Random(seed)
    ears, talker = Ears(), loom.App("talker")
    published: defaultdict[str, list[int]] = defaultdict(list)
    number = 0
    with tempfile.TemporaryDirectory(prefix="loom-faults-") as folder:
        up = Up(Path(folder))
        await up.start()
        try:
            async with (
                ears.app.running(url=up.url, token=up.token),
                talker.running(url=up.url, token=up.token) as ctx,
            ):

                async def publish(n: int, key: str) -> None:
                    await ctx.emit("order.new", n, key=key, ack="os", id=f"order-{n}")

                def has_room() -> bool:
                    return ears.count > number - AHEAD

                async def work(until: asyncio.Event) -> None:
                    nonlocal number
                    while not until.is_set():
                        # not further ahead than what is handled in a moment when it is over
                        await ears.until(has_room)
                        batch = [(number + i, rng.choice(KEYS)) for i in range(4)]
                        number += len(batch)
                        for n, key in batch:
                            published[key].append(n)
                        await asyncio.gather(*(publish(*one) for one in batch))

                for _ in range(wanted):
                    over = asyncio.Event()
                    working = asyncio.create_task(work(over))
                    target = ears.count + rng.randint(4, 40)
                    await ears.until(lambda target=target: ears.count >= target)
                    up.kill()
                    await up.start()
                    over.set()
                    async with asyncio.timeout(SETTLED):
                        await working
                await ears.until(
                    lambda: sum(len(set(seen)) for seen in ears.heard.values()) >= number
                )
                first = {key: list(dict.fromkeys(seen)) for key, seen in ears.heard.items()}
                assert first == published, "lost, or out of order"
                handled_again = ears.count - number
                kept: list[int] = []
                async with ctx.watch("order.>", start="beginning") as events:
                    async with asyncio.timeout(SETTLED):
                        while len(kept) < number:
                            kept.append((await anext(events)).data)
                assert sorted(kept) == list(range(number)), "in the log twice, or not at all"
        finally:
            up.kill()
    return {"kills": wanted, "events": number, "handled_again": handled_again}


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


KINDS: Final[Mapping[str, Callable[[int, int], Awaitable[Told]]]] = {
    "cuts-grpc": lambda seed, wanted: cuts(seed, wanted, "http2"),
    "cuts-websocket": lambda seed, wanted: cuts(seed, wanted, "websocket"),
    "kills": kills,
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
