"""Wrong input of every kind: a typed error at once, and the app goes on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import loom
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
