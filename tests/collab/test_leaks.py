"""Members that die and primitives that are cancelled at any moment leave nothing behind."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import loom
from loom.collab import Contractor, Target, barrier, contract_net, fanin, fanout
from loom.testing import Harness

pytestmark = pytest.mark.requirement("COLLAB-NO-LEAK")

SEEDS = range(10)
MORE_SEEDS = range(10, 50)
WAYS = ("well", "raise", "never", "slow", "twice", "exit")


async def behave(ctx: loom.Context, way: str) -> None:
    if way == "raise":
        raise RuntimeError("died")
    if way == "exit":
        raise loom.LoomError("gone")
    await ctx.sleep({"never": 100.0, "slow": 3.0}.get(way, 0.5))


def member(way: str) -> type[loom.Agent]:
    """An agent that answers, votes and meets in its way."""

    class Member(loom.Agent):
        @loom.on("ask")
        async def asked(self, ctx: loom.Context, event: loom.Event) -> str | None:
            await behave(ctx, way)
            for _ in range(2 if way == "twice" else 1):
                await ctx.emit("vote", "aye", thread=event.thread_id)
            return ctx.agent if event.wants_reply else None

        @loom.on("meet")
        async def meets(self, ctx: loom.Context, event: loom.Event) -> None:
            await behave(ctx, way)
            await barrier(ctx, "start", 5, timeout=2)

    return Member


def hand(bidding: str, working: str) -> type[Contractor[str]]:
    """A contractor that bids in one way and works in another."""

    class Hand(Contractor[str]):
        async def on_start(self, ctx: loom.Context) -> None:
            hands.append(self)

        async def bid(self, ctx: loom.Context, task: str) -> float:
            await behave(ctx, bidding)
            return 1.0

        async def execute(self, ctx: loom.Context, task: str) -> str:
            await behave(ctx, working)
            if working == "twice":
                done = {"v": 1, "award": 1, "result": "again"}
                await ctx.emit(f"thread.{ctx.thread_id}.done", done)
            return "done"

    return Hand


hands: list[Contractor[str]] = []


def crew(rng: random.Random) -> loom.App:
    """Four members, each of which does its part well, badly, late, twice or not at all."""
    app = loom.App("crew")
    hands.clear()
    for name in ("ada", "bob", "eve", "kim"):
        bidding, working = rng.choice(WAYS), rng.choice(WAYS)
        app.agent(name, topics=["ask", "meet"])(member(bidding))
        app.agent(f"{name}.hand", topics=["job"])(hand(bidding, working))

    @app.capability("work", effect="pure", timeout=60)
    async def work(seconds: float) -> str:
        await asyncio.get_running_loop().create_future()
        return "never"

    return app


async def asks(ctx: loom.Context[Any], rng: random.Random) -> object:
    targets: list[Target] = ["ask", ("work", {"seconds": 1}), ("nothing", {}), "nobody"]
    async with fanout(ctx, targets, timeout=rng.choice((1, 4))) as group:
        if rng.random() < 0.5:
            return await group.majority()
        await group.first(2)
        return await group.all()


async def listens(ctx: loom.Context[Any], rng: random.Random) -> object:
    async with fanin(ctx, ["vote", "loom.error.>"], timeout=rng.choice((1, 4))) as heard:
        await ctx.emit("ask")
        if rng.random() < 0.5:
            return await heard.majority(of=4)
        return await heard.first(6)


async def meets(ctx: loom.Context[Any], rng: random.Random) -> object:
    thread = f"t{rng.random()}".replace(".", "")
    await ctx.emit("meet", thread=thread)
    return await barrier(ctx, "start", rng.choice((4, 5)), timeout=3, thread=thread)


async def contracts(ctx: loom.Context[Any], rng: random.Random) -> object:
    return await contract_net(
        ctx, "dig", topic="job", bid_timeout=rng.choice((1, 4)), timeout=8, returns=str
    )


PRIMITIVES: dict[str, Callable[[loom.Context[Any], random.Random], Awaitable[object]]] = {
    "fanout": asks,
    "fanin": listens,
    "barrier": meets,
    "contract_net": contracts,
}


def held(h: Harness) -> dict[str, int]:
    """What the engine holds, and how many tasks run that are not workers of a pool."""
    tasks = [t for t in asyncio.all_tasks() if not t.get_name().startswith("loom ")]
    return {**h.stats()["gauges"], "tasks": len(tasks)}


async def run(coroutine: Awaitable[object]) -> str:
    """Return how it ended: its own way, or cancelled."""
    try:
        await coroutine
    except loom.LoomError as error:
        return error.code
    except asyncio.CancelledError:
        return "cancelled"
    return "ok"


async def cancelled(name: str, seeds: range) -> None:
    """Cancel it at some moment, for each seed, and see that nothing is left."""
    found: set[str] = set()
    for seed in seeds:
        rng = random.Random(seed)
        async with Harness(crew(rng), seed=seed) as h:
            await barrier(h.ctx, "first", 1, timeout=1, thread="t")  # starts the coordinator
            await h.idle()
            before = held(h)
            under_way = [
                asyncio.create_task(run(PRIMITIVES[name](h.ctx, rng)))
                for _ in range(rng.choice((1, 3)))
            ]
            if rng.random() < 0.5:
                await h.advance(rng.choice((0.0, 0.5, 0.7, 1.5, 3.5)))
            for _ in range(rng.randrange(60)):
                await asyncio.sleep(0)
            under_way[0].cancel()
            await h.advance(300)
            assert all(task.done() for task in under_way), seed
            found.update(task.result() for task in under_way if not task.cancelled())
            assert held(h) == before, seed
            assert not any(vars(contractor)["_contracts"] for contractor in hands), seed
    assert "cancelled" in found
    assert found - {"cancelled"}, "none ended by itself"


async def ends(name: str, seeds: range) -> None:
    """Let its members do what they want, for each seed, and see that it ends."""
    for seed in seeds:
        rng = random.Random(seed)
        async with Harness(crew(rng), seed=seed) as h:
            task = asyncio.create_task(run(PRIMITIVES[name](h.ctx, rng)))
            await h.advance(9)
            assert task.done(), seed
            assert (await task) in {"ok", "TIMEOUT", "UNAVAILABLE"}, seed
            await h.advance(300)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", PRIMITIVES)
async def test_cancelled_at_any_moment_it_leaves_nothing_behind(name: str) -> None:
    await cancelled(name, SEEDS)


@pytest.mark.timeout(120)
@pytest.mark.in_process("with more seeds, for which there is no time on each link")
@pytest.mark.parametrize("name", PRIMITIVES)
async def test_cancelled_at_many_more_moments_it_leaves_nothing_behind(name: str) -> None:
    await cancelled(name, MORE_SEEDS)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", PRIMITIVES)
async def test_whatever_members_do_it_ends_in_time(name: str) -> None:
    await ends(name, SEEDS)


@pytest.mark.timeout(60)
@pytest.mark.in_process("with more seeds, for which there is no time on each link")
@pytest.mark.parametrize("name", PRIMITIVES)
async def test_whatever_many_more_members_do_it_ends_in_time(name: str) -> None:
    await ends(name, MORE_SEEDS)
