"""One run of each primitive, and what was said in it, as ``spec/collab/golden`` has it."""

from collections.abc import Awaitable, Callable
from typing import Any

import loom
import loom.errors
from loom.collab import Contractor, barrier, contract_net, fanin, fanout
from loom.testing import Harness

Told = list[dict[str, Any]]

SCHEMAS = {
    "cfp": "cfp",
    "bid": "bid",
    "award": "award",
    "decline": "decline",
    "done": "done",
    "job": "cfp",
}


async def _fanout() -> Told:
    app = loom.App("asker")

    @app.agent("north", topics=["weather.north"])
    async def north(ctx: loom.Context, event: loom.Event) -> str:
        return "rain"

    @app.agent("south", topics=["weather.south"])
    async def south(ctx: loom.Context, event: loom.Event) -> str:
        return "sun"

    @app.agent("asks", topics=["go"])
    async def asks(ctx: loom.Context, event: loom.Event) -> None:
        targets = ["weather.north", "weather.south"]
        async with fanout(ctx, targets, {"day": 1}, timeout=5) as group:
            await group.all()

    async with Harness(app, seed=7) as h:
        await h.ctx.emit("go", thread="trip-7")
        await h.idle()
        return told(h, "trip-7")


async def _fanin() -> Told:
    app = loom.App("asker")

    @app.agent("north", topics=["poll"])
    async def north(ctx: loom.Context, event: loom.Event) -> None:
        await ctx.emit("vote.north", "tea")

    @app.agent("south", topics=["poll"])
    async def south(ctx: loom.Context, event: loom.Event) -> None:
        await ctx.emit("vote.south", "tea")

    @app.agent("asks", topics=["go"])
    async def asks(ctx: loom.Context, event: loom.Event) -> None:
        async with fanin(ctx, ["vote.*"], timeout=5) as heard:
            await ctx.emit("poll")
            await heard.majority(of=2)

    async with Harness(app, seed=7) as h:
        await h.ctx.emit("go", thread="trip-7")
        await h.idle()
        return told(h, "trip-7")


async def _barrier() -> Told:
    app = loom.App("crew")

    @app.agent("ada", topics=["go"])
    async def ada(ctx: loom.Context, event: loom.Event) -> None:
        await barrier(ctx, "ready", 2, timeout=5)
        await ctx.sleep(1)
        await barrier(ctx, "done", 2, timeout=5)

    @app.agent("bob", topics=["go"])
    async def bob(ctx: loom.Context, event: loom.Event) -> None:
        await barrier(ctx, "ready", 2, timeout=2.5, member="left-hand")
        await ctx.sleep(10)
        await barrier(ctx, "done", 2, timeout=5)

    async with Harness(app, seed=7) as h:
        await h.ctx.emit("go", thread="trip-7")
        await h.advance(10)
        return told(h, "trip-7")


async def _contract_net() -> Told:
    app = loom.App("market")

    @app.agent("ada", topics=["job"])
    class Ada(Contractor[str]):
        async def bid(self, ctx: loom.Context, task: str) -> float:
            return 1.5

        async def execute(self, ctx: loom.Context, task: str) -> str:
            await ctx.sleep(1)
            return f"{task}: done"

    @app.agent("bob", topics=["job"])
    class Bob(Contractor[str]):
        async def bid(self, ctx: loom.Context, task: str) -> float:
            return 2.0

        async def execute(self, ctx: loom.Context, task: str) -> str:
            raise loom.errors.Exhausted("out of paint")

    @app.agent("eve", topics=["job"])
    class Eve(Contractor[str]):
        async def bid(self, ctx: loom.Context, task: str) -> None: ...

    @app.agent("boss", topics=["go"])
    async def boss(ctx: loom.Context, event: loom.Event) -> None:
        award = await contract_net(
            ctx, "paint the fence", topic="job", bid_timeout=2, timeout=30, returns=str
        )
        assert award.result == "paint the fence: done"

    async with Harness(app, seed=7) as h:
        await h.ctx.emit("go")
        await h.advance(2)
        (cfp,) = h.events("job")
        return told(h, cfp.thread_id)


def told(h: Harness, thread: str) -> Told:
    """Return what was said in a thread, in order, with a placeholder for its id."""
    said: Told = []
    for event in h.events():
        if event.thread_id != thread or event.topic == "go" or event.topic.startswith("loom."):
            continue
        said.append(
            {
                "topic": event.topic.replace(thread, "{thread}"),
                "sender": event.sender,
                "request": event.deadline is not None,
                "schema": schema_of(event, thread),
                "data": event.data,
            }
        )
    return said


def schema_of(event: loom.Event[Any], thread: str) -> str | None:
    """Return the name of the schema of an event's data; None where it is the user's own."""
    rest = event.topic.removeprefix(f"thread.{thread}.")
    if rest.startswith("barrier."):
        return "barrier-arrival"
    if rest == "reply" and event.sender.endswith("/loom.barrier"):
        return "barrier-outcome"
    return SCHEMAS.get(rest)


RUNS: dict[str, Callable[[], Awaitable[Told]]] = {
    "fanout": _fanout,
    "fanin": _fanin,
    "barrier": _barrier,
    "contract_net": _contract_net,
}
