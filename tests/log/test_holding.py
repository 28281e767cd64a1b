"""Groups that are away, and a log with limits: who holds nothing any more is told of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.config import Config, LogConfig
from loom.link.clock import VirtualClock
from loom.runtime.running import Running, running

LOOK = 60.0
"""Seconds between two looks at what may go."""

EVENTS, SIZE = 1_400, 15_000
"""More than one segment of the log, in events that are kept in it whole."""


class Shop:
    """An app whose agents are chosen, and what they were given."""

    def __init__(self, *, slow: bool) -> None:
        self.app = loom.App("shop")
        self.told = list[dict[str, Any]]()
        self.done = list[int]()
        self.deleted = list[dict[str, Any]]()

        @self.app.agent("ear", topics=["loom.error.cursor_expired", "loom.log.deleted"])
        async def ear(ctx: loom.Context, event: loom.Event[Any]) -> None:
            (self.deleted if event.topic == "loom.log.deleted" else self.told).append(event.data)

        del ear
        if slow:

            @self.app.agent("slow", topics=["order.>"])
            async def away(ctx: loom.Context, event: loom.Event[str]) -> None:
                self.done.append(int(event.data.split()[0]))

            del away


@asynccontextmanager
async def life(shop: Shop, log: LogConfig) -> AsyncGenerator[Running]:
    config = Config(target="", model="auto", environment={}, origins={}, log=log)
    async with running(shop.app, virtual_clock=True, seed=0, config=config) as run:
        await run.calm()
        yield run
        await run.calm()


async def advance(run: Running, seconds: float) -> None:
    clock = run.engine.clock
    assert isinstance(clock, VirtualClock)
    clock.advance_to(clock.now() + seconds)
    run.link.tick()
    await run.calm()


def kept(path: Path, **rules: int) -> LogConfig:
    return LogConfig(dir=path, durable=("order.>",), **rules)  # pyright: ignore[reportArgumentType]


def oldest(run: Running) -> int:
    (only,) = run.stats()["log"]["partitions"]
    return int(only["oldest"])


@pytest.mark.requirement("DUR-NEEDS")
async def test_a_group_that_is_away_for_too_long_is_ended_and_told_so_when_it_is_back(
    tmp_path: Path,
) -> None:
    log = kept(tmp_path, retention_age=10**9, retention_idle=3_600)
    async with life(Shop(slow=True), log) as run:
        await run.context.emit("order.new", "0 tea")
    shop = Shop(slow=False)
    async with life(shop, log) as run:
        await run.context.emit("order.new", "1 cups")
        await advance(run, 3_500)
        assert shop.told == []
        await advance(run, 200)
        (ended,) = shop.told
        assert ended["who"] == "slow"
        assert "retention_idle (3600 s)" in ended["message"]
        assert 'start="beginning"' in ended["hint"]
        await advance(run, 3_600)
        assert shop.told == [ended], "it is told once"
    shop = Shop(slow=True)
    async with life(shop, log) as run:
        (back,) = shop.told
        assert (back["code"], back["who"]) == ("CURSOR_EXPIRED", "slow")
        assert "begins anew" in back["message"]
        await run.context.emit("order.new", "2 milk")
        await run.calm()
    assert shop.done == [2]


@pytest.mark.requirement("DUR-NEEDS")
async def test_where_nothing_is_deleted_no_group_is_ended(tmp_path: Path) -> None:
    log = kept(tmp_path, retention_idle=3_600)
    async with life(Shop(slow=True), log):
        pass
    shop = Shop(slow=False)
    async with life(shop, log) as run:
        await run.context.emit("order.new", "1 tea")
        await advance(run, 7_200)
    back = Shop(slow=True)
    async with life(back, log):
        pass
    assert (shop.told, back.told, back.done) == ([], [], [1])


@pytest.mark.requirement("DUR-HOLD")
async def test_a_group_that_is_away_does_not_keep_a_log_from_its_limit_of_bytes(
    tmp_path: Path,
) -> None:
    log = kept(tmp_path, retention_bytes=1)
    async with life(Shop(slow=True), log):
        pass
    shop = Shop(slow=False)
    async with life(shop, log) as run:
        ctx = run.context
        for part in range(2):
            numbers = range(part * EVENTS, (part + 1) * EVENTS)
            emits = (ctx.emit("order.new", f"{n} ".ljust(SIZE), ack="os") for n in numbers)
            await asyncio.gather(*emits)
            await advance(run, LOOK)
        assert oldest(run) > 0
        files = [file["file"] for file in shop.deleted]
        assert files
        assert not any((tmp_path / "default" / file).exists() for file in files)
        assert [(one["who"], one["code"]) for one in shop.told] == [("slow", "CURSOR_EXPIRED")]
        assert "over its limit of bytes" in shop.told[0]["message"]
        assert "retention_bytes" in shop.told[0]["hint"]
    back = Shop(slow=True)
    async with life(back, log):
        pass
    assert [one["who"] for one in back.told] == ["slow"]
    assert "not kept any more" in back.told[0]["message"]
    assert 0 < back.done[0] < 2 * EVENTS, "what went is lost"
    assert back.done == list(range(back.done[0], 2 * EVENTS)), "and nothing else"
