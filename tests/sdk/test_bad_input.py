"""Wrong input of every kind: a typed error at once, and the app goes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

import loom
from loom.collab import Contractor, barrier, contract_net, fanin, fanout
from loom.testing import Harness


def echo() -> loom.App:
    app = loom.App("echo")

    @app.agent("echo", topics=["echo"])
    async def answer(ctx: loom.Context, event: loom.Event) -> Any:
        return event.data

    return app


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.requirement("BAD-INPUT", "TOPIC-GRAMMAR")
@pytest.mark.parametrize(
    ("topic", "limit"),
    [
        ("", None),
        ("a..b", None),
        (".a", None),
        ("a.*", None),
        ("a.>", None),
        ("a b", None),
        ("ä", None),
        ("a\x00b", None),
        ("\u202ea", None),
        (".".join("a" * 17), "topic_tokens"),
        ("a" * 257, "topic_bytes"),
    ],
)
async def test_a_wrong_topic_is_refused_with_the_field_and_the_limit(
    topic: str, limit: str | None
) -> None:
    async with echo().running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.emit(topic, 1)
        assert (await ctx.request("echo", "still here")).data == "still here"

    assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", "topic")
    assert caught.value.limit == limit
    assert caught.value.hint or caught.value.limit


@pytest.mark.requirement("EVENT-RESERVED")
async def test_only_the_engine_publishes_under_loom() -> None:
    async with echo().running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.emit("loom.error.timeout", {})
        with pytest.raises(loom.LoomError) as asked:
            await ctx.request("loom.node.list", {})

    assert caught.value.code == asked.value.code == "DENIED"


@pytest.mark.requirement("BAD-INPUT")
@pytest.mark.parametrize(
    ("data", "field"),
    [
        (float("nan"), "data"),
        ({"a": [1, {"b": float("inf")}]}, "data.a.1.b"),
        (CYCLE, "data"),
        (object(), "data"),
        ("\ud800", "data"),
        ({"key": {1, 2}, "no": object()}, "data"),
        ("x" * 2_000_000, "data"),
        (b"x" * 2_000_000, "data"),
    ],
)
async def test_data_that_cannot_travel_is_refused_naming_the_place(data: Any, field: str) -> None:
    async with echo().running() as ctx:
        for act in (ctx.emit, ctx.request):
            with pytest.raises(loom.LoomError) as caught:
                await act("echo", data)
            assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", field)
        assert (await ctx.request("echo", "still here")).data == "still here"


async def test_an_oversized_payload_names_the_limit_and_the_way_out() -> None:
    async with echo().running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.emit("echo", b"x" * 1_048_577)
        receipt = await ctx.emit("echo", b"x" * 1_048_576)

    assert caught.value.limit == "payload_bytes"
    assert caught.value.hint
    assert receipt.level == "accepted"


@pytest.mark.requirement("BAD-INPUT")
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"qos": "fast"}, "qos"),
        ({"ack": "paper"}, "ack"),
        ({"ttl": -1.0}, "ttl"),
        ({"ttl": 0.0}, "ttl"),
        ({"ttl": 1e9}, "ttl"),
        ({"key": "k" * 300}, "key"),
        ({"headers": {"h": "v" * 5_000}}, "headers"),
        ({"headers": {str(n): "" for n in range(40)}}, "headers"),
    ],
)
async def test_a_wrong_option_is_refused_naming_it(options: dict[str, Any], field: str) -> None:
    async with echo().running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.emit("echo", 1, **options)

    assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", field)


@pytest.mark.requirement("BAD-INPUT")
@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf"), 1e9])
async def test_a_wrong_timeout_is_refused(timeout: float) -> None:
    async with echo().running() as ctx:
        for act in (ctx.request, ctx.tool):
            with pytest.raises(loom.LoomError) as caught:
                await act("echo", timeout=timeout)
            assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", "timeout")


@pytest.mark.requirement("BAD-INPUT")
@pytest.mark.parametrize("value", [None, 5, b"echo", ["echo"]])
async def test_a_topic_of_the_wrong_type_is_refused(value: Any) -> None:
    async with echo().running() as ctx:
        for act in (ctx.emit, ctx.request):
            with pytest.raises(loom.LoomError) as caught:
                await act(value, 1)
            assert caught.value.code == "INVALID_PARAMS"
        with pytest.raises(loom.LoomError) as called:
            await ctx.tool(value)
        assert called.value.code == "INVALID_PARAMS"


@pytest.mark.requirement("NOT-YET")
async def test_what_is_not_built_yet_says_so() -> None:
    app = echo()
    async with app.running() as ctx:
        for ack in ("os", "disk"):
            with pytest.raises(loom.LoomError) as caught:
                await ctx.emit("echo", 1, ack=ack)
            assert (caught.value.code, caught.value.field) == ("NOT_SUPPORTED", "ack")
        with pytest.raises(loom.LoomError) as approval:
            await ctx.approve("anything")
        assert approval.value.code == "NOT_SUPPORTED"
    with pytest.raises(loom.LoomError) as durable:

        @app.agent("durable", topics=["x"], durable=True)
        async def later(ctx: loom.Context, event: loom.Event) -> None: ...

    assert (durable.value.code, durable.value.field) == ("NOT_SUPPORTED", "durable")


@pytest.mark.requirement("BAD-HANDLER")
@pytest.mark.parametrize("kind", ["nan", "cycle", "huge", "surrogate"])
async def test_a_handler_that_returns_what_cannot_travel_ends_its_turn_with_an_error(
    kind: str,
) -> None:
    app = loom.App("returns")

    @app.agent("returns", topics=["ask"])
    async def returns(ctx: loom.Context, event: loom.Event[str]) -> Any:
        return {
            "nan": {"x": float("nan")},
            "cycle": CYCLE,
            "huge": "x" * 100_000_000 if event.data == "huge" else "",
            "surrogate": "\udfff",
            "good": "good",
        }[event.data]

    async with Harness(app) as h:
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.request("ask", kind)
        assert (await h.ctx.request("ask", "good")).data == "good"

    assert caught.value.code == "INVALID_PARAMS"
    assert (caught.value.field or "").startswith("return")
    assert caught.value.who == "default/returns"


@pytest.mark.requirement("BAD-HANDLER")
async def test_a_generator_that_never_closes_does_not_hold_up_the_app() -> None:
    app = loom.App("generators")
    going_on = asyncio.Event()

    @app.capability("stubborn", effect="pure")
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.get_running_loop().create_future()
        finally:
            await going_on.wait()

    async with Harness(app) as h:
        async with h.ctx.stream("stubborn") as chunks:
            assert await anext(chunks) == 1
        collected = await h.ctx.request_many("nobody.listens.here", timeout=1)
        assert collected.items == []
        going_on.set()
        await h.idle()


async def test_a_payload_that_is_not_json_is_a_typed_error_when_it_is_read() -> None:
    app = loom.App("bytes")

    @app.agent("reads", topics=["ask"])
    async def reads(ctx: loom.Context, event: loom.Event[dict[str, int]]) -> int:
        return event.data["n"]

    async with app.running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.request("ask", b"\xff\xfe not json")

    assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", "data")


async def test_a_handler_may_ask_for_the_payload_as_it_travelled() -> None:
    app = loom.App("raw")

    @app.agent("raw", topics=["ask"])
    async def raw(ctx: loom.Context, event: loom.Event[bytes]) -> list[str]:
        return [event.data.decode(), event.payload.decode()]

    async with app.running() as ctx:
        answer = await ctx.request("ask", {"n": 1})

    assert answer.data == ['{"n":1}', '{"n":1}']


@pytest.mark.requirement("BAD-INPUT")
async def test_a_context_that_waits_in_another_thread_is_told_and_nothing_is_sent() -> None:
    app = echo()
    async with app.running() as ctx:

        async def wait_elsewhere(what: str) -> loom.LoomError:
            with pytest.raises(loom.errors.NotSupported) as told:
                await (ctx.request("echo", 1) if what == "request" else ctx.tool("echo"))
            return told.value

        for what in ("request", "tool"):
            error = await asyncio.to_thread(asyncio.run, wait_elsewhere(what))
            assert "run_coroutine_threadsafe" in str(error)
        assert app.stats()["events"]["published"] == 0
        assert (await ctx.request("echo", "still here")).data == "still here"


@pytest.mark.requirement("BAD-INPUT")
async def test_a_delivery_class_that_cannot_be_looked_up_is_refused_by_its_field() -> None:
    wrong: Any = []
    async with echo().running() as ctx:
        with pytest.raises(loom.errors.InvalidParams) as told:
            await ctx.emit("echo", 1, qos=wrong)
    assert told.value.field == "qos"


class Wrongly:
    """One running app, and each public function with one argument of a wrong type."""

    def __init__(self, h: Harness, app: loom.App) -> None:
        self.h, self.ctx, self.app = h, h.ctx, app

    async def watch(self, *patterns: Any, **options: Any) -> None:
        async with self.ctx.watch(*patterns, **options):
            raise AssertionError("it watches")

    async def fanout(self, method: str = "all", *args: Any, **options: Any) -> None:
        given: Any = {"ctx": self.ctx, "targets": ["echo"], "timeout": 1.0} | options
        async with fanout(given.pop("ctx"), given.pop("targets"), **given) as group:
            await getattr(group, method)(*args)

    async def fanin(self, method: str = "all", *args: Any, **options: Any) -> None:
        more: Any = options.pop("more", {})
        given: Any = {"ctx": self.ctx, "topics": ["a"], "timeout": 1.0} | options
        async with fanin(given.pop("ctx"), given.pop("topics"), **given) as heard:
            await getattr(heard, method)(*args, **more)

    async def meet(self, **options: Any) -> None:
        given: Any = {"ctx": self.ctx, "name": "b", "n": 1, "timeout": 1.0, "thread": "x"} | options
        await barrier(**given)

    async def contract(self, **options: Any) -> None:
        given: Any = {"ctx": self.ctx, "task": 1, "topic": "bids"} | options
        await contract_net(bid_timeout=0.5, timeout=1.0, **given)

    def agent(self, **options: Any) -> None:
        async def nothing(ctx: loom.Context, event: loom.Event) -> None: ...

        given: Any = {"topics": ["t"]} | options
        loom.App("x").agent("n", **given)(nothing)

    def capability(self, **options: Any) -> None:
        loom.App("x").capability("n", **options)

    def method(self, **options: Any) -> None:
        loom.capability("n", **options)


NAN = float("nan")
ENDLESS = 10**5000
Act = Callable[[Wrongly], "Awaitable[Any] | Any"]


async def tried(act: Act, w: Wrongly) -> None:
    done = act(w)
    if isinstance(done, Awaitable):
        await cast("Awaitable[Any]", done)


WRONG: list[tuple[str, Act]] = [
    ("capability", lambda w: w.app.routes.set(cast("Any", 5), {"a": 1})),
    ("capability", lambda w: w.app.routes.set("\ud800", {"a": 1})),
    ("weights", lambda w: w.app.routes.set("cap", cast("Any", {1: 2}))),
    ("capability", lambda w: w.app.routes.get(cast("Any", []))),
    ("capability", lambda w: w.app.routes.clear(cast("Any", {}))),
    ("agent", lambda w: w.app.release(cast("Any", 5))),
    ("agent", lambda w: w.h.crash(cast("Any", 5))),
    ("at", lambda w: w.h.crash("echo", cast("Any", 5))),
    ("at", lambda w: w.h.crash("echo", "")),
    ("pattern", lambda w: w.h.events(cast("Any", 5))),
    ("seconds", lambda w: w.h.advance(NAN)),
    ("seconds", lambda w: w.h.advance(float("inf"))),
    ("seconds", lambda w: w.h.advance(cast("Any", "1"))),
    ("seconds", lambda w: w.ctx.sleep(NAN)),
    ("headers", lambda w: w.ctx.emit("echo", headers=cast("Any", ["h"]))),
    ("headers", lambda w: w.ctx.emit("echo", headers=cast("Any", 5))),
    ("patterns", lambda w: w.watch(5)),
    ("patterns", lambda w: w.watch("a", None)),
    ("qos", lambda w: w.watch("a", qos="fast")),
    ("qos", lambda w: w.watch("a", qos=[])),
    ("returns", lambda w: w.ctx.tool("cap", returns=cast("Any", "int"))),
    ("returns", lambda w: w.ctx.tool("cap", returns=cast("Any", []))),
    ("returns", lambda w: w.ctx.request("echo", returns=cast("Any", 5))),
    ("returns", lambda w: w.ctx.request_many("echo", returns=cast("Any", {}))),
    ("first_k", lambda w: w.ctx.request_many("echo", first_k=cast("Any", "2"))),
    ("first_k", lambda w: w.ctx.request_many("echo", first_k=cast("Any", 1.5))),
    ("topic", lambda w: w.ctx.agents(topic=cast("Any", 5))),
    ("name", lambda w: w.ctx.agents(cast("Any", 5))),
    ("capability", lambda w: w.ctx.agents(capability=cast("Any", 5))),
    ("pattern", lambda w: w.ctx.capabilities(cast("Any", 5))),
    ("ctx", lambda w: w.fanout(ctx=5)),
    ("targets", lambda w: w.fanout(targets=5)),
    ("targets", lambda w: w.fanout(targets={"a"})),
    ("returns", lambda w: w.fanout(returns=5)),
    ("timeout", lambda w: w.fanout(timeout="1")),
    ("k", lambda w: w.fanout("first", "1")),
    ("k", lambda w: w.fanout("first", True)),
    ("key", lambda w: w.fanout("majority", 5)),
    ("ctx", lambda w: w.fanin(ctx=None)),
    ("topics", lambda w: w.fanin(topics=5)),
    ("topics", lambda w: w.fanin(topics=[5])),
    ("thread", lambda w: w.fanin(thread=5)),
    ("returns", lambda w: w.fanin(returns="")),
    ("k", lambda w: w.fanin("first", None)),
    ("of", lambda w: w.fanin("majority", more={"of": "3"})),
    ("key", lambda w: w.fanin("majority", more={"of": 3, "key": 5})),
    ("enough", lambda w: w.fanin("until", 5)),
    ("ctx", lambda w: w.meet(ctx=5)),
    ("name", lambda w: w.meet(name=5)),
    ("n", lambda w: w.meet(n="1")),
    ("n", lambda w: w.meet(n=ENDLESS)),
    ("member", lambda w: w.meet(member=5)),
    ("thread", lambda w: w.meet(thread=5)),
    ("ctx", lambda w: w.contract(ctx=5)),
    ("topic", lambda w: w.contract(topic=5)),
    ("score", lambda w: w.contract(score=5)),
    ("returns", lambda w: w.contract(returns=5)),
    ("name", lambda w: loom.App(cast("Any", 5))),
    ("namespace", lambda w: loom.App("x", namespace=cast("Any", 5))),
    ("middleware", lambda w: loom.App("x", middleware=cast("Any", 5))),
    ("topics", lambda w: w.agent(topics=5)),
    ("topics", lambda w: w.agent(topics=[5])),
    ("group", lambda w: w.agent(group=5)),
    ("concurrency", lambda w: w.agent(concurrency="2")),
    ("concurrency", lambda w: w.agent(concurrency=1.5)),
    ("timeout", lambda w: w.capability(timeout="1")),
    ("timeout", lambda w: w.method(timeout=None)),
    ("tags", lambda w: w.capability(tags=5)),
    ("tags", lambda w: w.capability(tags="one")),
    ("tags", lambda w: w.method(tags=[5])),
    ("version", lambda w: w.capability(version=1)),
    ("cost", lambda w: w.capability(cost=NAN)),
]


@pytest.mark.requirement("BAD-INPUT")
@pytest.mark.parametrize(
    ("field", "act"), WRONG, ids=[f"{n}-{f}" for n, (f, _) in enumerate(WRONG)]
)
async def test_a_value_of_a_wrong_type_is_refused_by_its_field_with_the_way_out(
    field: str, act: Act
) -> None:
    app = echo()

    @app.capability("cap", effect="pure")
    async def cap() -> int:
        return 1

    async with Harness(app) as h:
        with pytest.raises(loom.errors.InvalidParams) as told:
            await tried(act, Wrongly(h, app))
        assert (told.value.field, bool(told.value.hint)) == (field, True)
        assert len(told.value.message) < 300
        assert h.calls("cap") == 0
        assert (await h.ctx.request("echo", "still here")).data == "still here"


@pytest.mark.requirement("BAD-INPUT", "MIDDLEWARE")
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"args": None}, "args"),
        ({"args": 5}, "args"),
        ({"name": None}, "name"),
        ({"timeout": None}, "timeout"),
        ({"version": 1}, "version"),
        ({"key": 5}, "key"),
    ],
)
async def test_a_call_that_middleware_spoils_is_refused_by_its_field(
    change: dict[str, Any], field: str
) -> None:
    async def spoil(ctx: loom.Context, item: Any, next_: Any) -> Any:
        return await next_(replace(item, **change))

    app = loom.App("spoilt", middleware=[spoil])

    @app.capability("cap", effect="pure")
    async def cap() -> int:
        return 1

    async with app.running() as ctx:
        with pytest.raises(loom.errors.InvalidParams) as told:
            await ctx.tool(cap.bind())

    assert told.value.field == field


@pytest.mark.requirement("BAD-INPUT")
@pytest.mark.parametrize("score", ["high", None, NAN, float("inf"), ENDLESS], ids=range(5))
async def test_a_score_that_is_no_number_is_refused(score: Any) -> None:
    app = loom.App("scored")

    @app.agent("bidder", topics=["bids"])
    class Bidder(Contractor[Any]):
        async def bid(self, ctx: loom.Context, task: Any) -> float:
            return 1.0

        async def execute(self, ctx: loom.Context, task: Any) -> Any:
            return task

    async with Harness(app) as h:
        with pytest.raises(loom.errors.InvalidParams) as told:
            await contract_net(
                h.ctx, 1, topic="bids", bid_timeout=0.5, timeout=1.0, score=lambda _: score
            )

    assert (told.value.field, told.value.who) == ("score", "default/bidder")
