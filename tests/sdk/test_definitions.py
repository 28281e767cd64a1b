"""What is wrong in a declaration is said where it is written."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from pydantic import BaseModel

import loom
from loom.testing import Harness


class Counted(BaseModel):
    n: int = 0


@contextmanager
def refused(code: str, field: str) -> Generator[None]:
    with pytest.raises(loom.LoomError) as caught:
        yield
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.hint or caught.value.limit


@pytest.mark.requirement("APP-NO-IO")
@pytest.mark.parametrize("name", ["", "Shop", "a b", "a..b", "ä", "x" * 129])
def test_a_wrong_name_of_an_app_is_refused(name: str) -> None:
    with refused("INVALID_PARAMS", "name"):
        loom.App(name)


@pytest.mark.requirement("DUPLICATE-AGENT")
def test_two_agents_of_one_name_are_refused() -> None:
    app = loom.App("twice")

    @app.agent("same", topics=["a"])
    async def first(ctx: loom.Context, event: loom.Event) -> None: ...

    with refused("CONFLICT", "name"):

        @app.agent("same", topics=["b"])
        async def second(ctx: loom.Context, event: loom.Event) -> None: ...

    other = loom.App("other")

    @other.agent("same", topics=["a"])
    async def third(ctx: loom.Context, event: loom.Event) -> None: ...

    with refused("CONFLICT", "name"):
        app.include(other)


def test_two_capabilities_of_one_name_are_refused() -> None:
    app = loom.App("twice")

    @app.capability("same")
    async def first() -> None: ...

    with refused("CONFLICT", "name"):

        @app.capability("same", version="1")
        async def second() -> None: ...


@pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", "a*", "> ", ".".join("a" * 17)])
def test_a_wrong_filter_is_refused(pattern: str) -> None:
    app = loom.App("filters")

    async def handler(ctx: loom.Context, event: loom.Event) -> None: ...

    with refused("INVALID_PARAMS", "topics"):
        app.agent("wrong", topics=[pattern])(handler)
    with refused("INVALID_PARAMS", "filter"):
        loom.on(pattern)


def test_a_class_without_a_handler_for_a_topic_is_refused() -> None:
    app = loom.App("handlers")

    with refused("INVALID_PARAMS", "topics"):

        @app.agent("deaf", topics=["a.b"])
        class Deaf(loom.Agent):
            @loom.on("other")
            async def other(self, ctx: loom.Context, event: loom.Event) -> None: ...

    with refused("INVALID_PARAMS", "topics"):

        @app.agent("nothing")
        class Nothing(loom.Agent): ...


def test_handlers_of_the_wrong_shape_are_refused() -> None:
    app: Any = loom.App("shapes")

    def plain(ctx: loom.Context, event: loom.Event) -> None: ...

    async def one_argument(ctx: loom.Context) -> None: ...

    class NoAgent: ...

    with refused("INVALID_PARAMS", "handler"):
        app.agent("plain", topics=["a"])(plain)
    with refused("INVALID_PARAMS", "handler"):
        app.agent("one", topics=["a"])(one_argument)
    with refused("INVALID_PARAMS", "agent"):
        app.agent("none", topics=["a"])(NoAgent)
    with refused("INVALID_PARAMS", "topics"):
        app.agent("text", topics="a")(one_argument)
    with refused("INVALID_PARAMS", "concurrency"):
        app.agent("many", topics=["a"], concurrency=0)(one_argument)


def test_capabilities_of_the_wrong_shape_are_refused() -> None:
    app: Any = loom.App("shapes")

    with refused("INVALID_PARAMS", "name"):
        app.capability("Not A Name")
    with refused("INVALID_PARAMS", "effect"):
        app.capability("a", effect="harmless")
    with refused("INVALID_PARAMS", "timeout"):
        app.capability("a", timeout=0)
    with refused("INVALID_PARAMS", "isolation"):
        app.capability("a", isolation="cellar")
    with refused("NOT_SUPPORTED", "needs_approval"):
        app.capability("a", needs_approval=True)

    with refused("INVALID_PARAMS", "values"):

        @app.capability("many")
        async def many(*values: int) -> None: ...

    @app.capability("a", effect="pure")
    async def a(value: int) -> None: ...

    with refused("INVALID_PARAMS", "effect"):

        @a.probe
        async def probe(effect_id: str) -> None: ...

    @app.capability("b", effect="probeable")
    async def b(value: int) -> None: ...

    with refused("INVALID_PARAMS", "probe"):
        b.probe(cast("Any", str))


async def test_the_first_matching_handler_in_source_order_wins() -> None:
    app = loom.App("order")
    seen: list[str] = []

    @app.agent("ordered", topics=["a.>"])
    class Ordered(loom.Agent[Counted]):
        @loom.on("a.b")
        async def exact(self, ctx: loom.Context, event: loom.Event) -> None:
            seen.append("exact")

        @loom.on("a.*")
        @loom.on("z.z")
        async def one(self, ctx: loom.Context, event: loom.Event) -> None:
            seen.append("one")

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
            seen.append("rest")

    async with app.running() as ctx:
        for topic in ("a.b", "a.c", "a.b.c", "z.z"):
            await ctx.emit(topic, key="one")
        (agent,) = await ctx.agents(topic="z.z")

    assert seen == ["exact", "one", "rest", "one"]
    assert agent.filters == ["a.>", "a.b", "z.z", "a.*"]


@pytest.mark.requirement("MEMORY-BOUNDED")
async def test_state_is_kept_per_key_and_declared_by_type() -> None:
    app = loom.App("state")

    @app.agent("counter", topics=["count"])
    class Counter(loom.Agent[Counted]):
        async def on_event(self, ctx: loom.Context[Counted], event: loom.Event) -> int:
            ctx.state.n += 1
            return ctx.state.n

    @app.agent("stateless", topics=["other"])
    async def stateless(ctx: loom.Context, event: loom.Event) -> None:
        assert ctx.state

    async with app.running() as ctx:
        counts = [(await ctx.request("count", key=key)).data for key in "aabab"]
        with pytest.raises(loom.LoomError) as caught:
            await ctx.request("other")

    assert counts == [1, 2, 1, 3, 2]
    assert (caught.value.code, caught.value.field) == ("NOT_SUPPORTED", "state")


async def test_on_start_and_on_stop_run_once_around_the_events() -> None:
    app = loom.App("life")
    seen: list[str] = []

    @app.agent("lives", topics=["tell"])
    class Lives(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            seen.append("start")
            await ctx.emit("tell", "from on_start")

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
            seen.append(event.data)

        async def on_stop(self, ctx: loom.Context) -> None:
            seen.append("stop")

    async with app.running() as ctx:
        await ctx.emit("tell", "from outside")

    assert seen == ["start", "from on_start", "from outside", "stop"]


async def test_an_app_that_runs_cannot_be_run_again_at_the_same_time() -> None:
    app = loom.App("once")
    with pytest.raises(loom.LoomError) as idle:
        app.stats()
    async with app.running():
        assert app.stats()["events"]["published"] >= 0
        with pytest.raises(loom.LoomError) as caught:
            async with app.running():
                pytest.fail("it runs twice")

    assert idle.value.code == caught.value.code == "NOT_SUPPORTED"


def test_an_agent_that_cannot_be_made_or_read_is_refused() -> None:
    app: Any = loom.App("shapes")

    class Needs(loom.Agent):
        def __init__(self, database: str) -> None: ...

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

    async def unreadable(ctx: loom.Context, event: "loom.Event[Nowhere]") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with refused("INVALID_PARAMS", "agent"):
        app.agent("needs", topics=["a"])(Needs)
    with refused("INVALID_PARAMS", "hints"):
        app.agent("unreadable", topics=["a"])(unreadable)


def test_types_are_found_where_the_handler_was_written() -> None:
    class Local(BaseModel):
        n: int

    app = loom.App("local")

    @app.agent("local", topics=["a"])
    async def handler(ctx: "Unknown", event: "loom.Event[Local]") -> None:  # type: ignore[name-defined]  # noqa: F821
        assert isinstance(event.data, Local)

    assert app.agents[0].routes[0].accepts is Local


async def test_parameters_may_have_any_name_and_need_a_schema() -> None:
    app = loom.App("names")

    @app.capability("odd", effect="pure")
    async def odd(json: int, schema: int, _x: int = 3) -> int:
        return json + schema + _x

    async with app.running() as ctx:
        assert await ctx.tool(odd.bind(json=1, schema=2)) == 6
        assert await ctx.tool("odd", args={"json": 1, "schema": 2, "_x": 4}) == 7

    @app.capability("strange", effect="pure")
    async def strange(what: Counter) -> None: ...

    with refused("INVALID_PARAMS", "hints"):
        async with app.running():
            pytest.fail("it runs")


class Counter:
    """Nothing that has a schema."""


def test_an_agent_without_a_docstring_has_no_description() -> None:
    app = loom.App("docs")

    @app.agent("bare", topics=["a"])
    class Bare(loom.Agent):
        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

    assert app.agents[0].description == ""


async def test_on_start_and_on_stop_may_call_the_apps_capabilities() -> None:
    app = loom.App("calls")
    seen: list[int] = []

    @app.capability("add", effect="pure", timeout=5)
    async def add(a: int, b: int) -> int:
        return a + b

    @app.agent("calls", topics=["a"])
    class Calls(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            seen.append(await ctx.tool(add.bind(1, 2)))

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

        async def on_stop(self, ctx: loom.Context) -> None:
            seen.append(await ctx.tool(add.bind(3, 4)))

    async with app.running():
        pass

    assert seen == [3, 7]


async def test_what_an_agent_logs_is_an_event_of_its_thread() -> None:
    app = loom.App("logs")

    @app.agent("talks", topics=["a"])
    async def talks(ctx: loom.Context, event: loom.Event) -> None:
        ctx.log.info("hello %s", "there")

    async with Harness(app) as h:
        receipt = await h.ctx.emit("a")
        await h.idle()
        (line,) = h.events("loom.log.info")

    assert line.data["message"] == "hello there"
    assert line.thread_id == receipt.id


async def test_an_app_can_be_served_until_it_is_cancelled() -> None:
    app = loom.App("served")
    stopped: list[str] = []
    started = asyncio.Event()

    @app.agent("lives", topics=["a"])
    class Lives(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            started.set()

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

        async def on_stop(self, ctx: loom.Context) -> None:
            stopped.append(ctx.agent)

    serving = asyncio.create_task(app.serve())
    await started.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert stopped == ["lives"]


@pytest.mark.requirement("WAKE-LOOP")
async def test_a_line_of_log_wakes_who_hears_it_and_needs_no_other_event() -> None:
    app = loom.App("pager")
    heard = asyncio.Event()

    @app.agent("pager", topics=["loom.log.warning"])
    async def pager(ctx: loom.Context, event: loom.Event[Any]) -> None:
        heard.set()

    async with app.running() as ctx:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, lambda: ctx.log.warning("look"))
        async with asyncio.timeout(5):
            await heard.wait()


@pytest.mark.requirement("EVENT-HOPS")
async def test_an_agent_that_logs_about_logs_ends_like_any_other_loop() -> None:
    app = loom.App("echo")
    heard = 0

    @app.agent("pager", topics=["loom.log.>"])
    async def pager(ctx: loom.Context, event: loom.Event[Any]) -> None:
        nonlocal heard
        heard += 1
        ctx.log.warning("again: %s", event.data["message"])

    async with Harness(app) as h:
        h.ctx.log.warning("look")
        await h.idle()
        assert heard == 17
