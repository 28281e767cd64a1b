"""Corners that the other tests do not turn: every field, every refusal, given-up threads."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

import loom
from loom.link import SystemClock, VirtualClock
from loom.testing import Harness, ScriptedModel
from loom.testing.scripted import Prompt


def code_of(caught: pytest.ExceptionInfo[loom.LoomError]) -> tuple[str, str | None]:
    return caught.value.code, caught.value.field


async def test_an_event_shows_every_field_of_its_envelope() -> None:
    app = loom.App("fields", namespace="shop")
    seen: list[loom.Event[Any]] = []

    @app.agent("reads", topics=["a.b"])
    async def reads(ctx: loom.Context, event: loom.Event) -> None:
        seen.append(event)
        assert (ctx.agent, ctx.namespace) == ("reads", "shop")
        assert (ctx.thread_id, ctx.run_id) == (event.thread_id, event.run_id)
        assert ctx.deadline is None
        async with ctx.task_group() as group:
            group.create_task(ctx.sleep(0))

    async with Harness(app) as h:
        receipt = await h.ctx.emit(
            "a.b", {"n": 1}, key="k", ttl=5.0, headers={"h": "v"}, qos="background"
        )
        await h.idle()
        now = h.ctx.now()
        assert (h.ctx.agent, h.ctx.namespace, h.ctx.thread_id) == ("fields", "shop", None)
        assert (h.ctx.run_id, h.ctx.deadline) == (None, None)

    (event,) = seen
    assert (event.id, event.topic, event.key, event.ttl) == (receipt.id, "a.b", "k", 5.0)
    assert (event.headers, event.qos, event.hop) == ({"h": "v"}, "background", 0)
    assert (event.sender, event.namespace) == ("shop/fields", "shop")
    assert (event.correlation_id, event.causation_id, event.causes) == (None, None, [])
    assert (event.reply_to, event.wants_reply, event.deadline) == (None, False, None)
    assert (event.traceparent, event.labels, event.position) == (None, [], None)
    assert (event.attempt, event.content_type) == (1, "application/json")
    assert abs(event.time - now) < 1
    assert event.payload == b'{"n":1}' == event.envelope.payload
    assert "a.b" in repr(event)
    assert (receipt.level, receipt.position) == ("accepted", None)


@pytest.mark.requirement("BAD-INPUT")
async def test_wrong_values_of_every_kind_are_refused_by_their_name() -> None:
    app = loom.App("values")

    @app.capability("add", effect="pure")
    async def add(a: int, b: int = 1) -> int:
        return a + b

    attempts: list[tuple[Callable[[Any], Awaitable[Any]], str]] = [
        (lambda c: c.sleep("1"), "seconds"),
        (lambda c: c.emit("a", 1, key=7), "key"),
        (lambda c: c.emit("a", 1, ttl="5s"), "ttl"),
        (lambda c: c.emit("a", 1, ttl=float("nan")), "ttl"),
        (lambda c: c.emit("a", 1, headers={"a": 1}), "headers"),
        (lambda c: c.request("a", timeout=None), "timeout"),
        (lambda c: c.request_many("a", first_k=0), "first_k"),
        (lambda c: c.tool("add", args=[1]), "args"),
        (lambda c: c.tool(add.bind(a=1), args={"a": 1}), "args"),
        (lambda c: c.race(), "coroutines"),
        (lambda c: c.memory.put(1, 2), "key"),
        (lambda c: c.memory.put("k", b"bytes"), "value"),
        (lambda c: c.memory.put("k", 1, ttl=0), "ttl"),
    ]
    async with app.running() as ctx:
        for attempt, field in attempts:
            with pytest.raises(loom.LoomError) as caught:
                await attempt(ctx)
            assert code_of(caught) == ("INVALID_PARAMS", field)
        with pytest.raises(loom.LoomError) as state:
            assert ctx.state
        with pytest.raises(loom.LoomError) as include:
            app.include("other")  # type: ignore[arg-type]
        with pytest.raises(loom.LoomError) as call:
            await ctx.tool(5)  # type: ignore[call-overload]
    assert code_of(state) == ("NOT_SUPPORTED", "state")
    assert include.value.code == call.value.code == "INVALID_PARAMS"


async def test_the_harness_and_the_script_refuse_what_makes_no_sense() -> None:
    with pytest.raises(loom.LoomError):
        Harness(loom.App("a"), clock="lunar")  # type: ignore[arg-type]
    with pytest.raises(loom.LoomError):
        ScriptedModel("one text")
    harness = Harness(loom.App("a"))
    with pytest.raises(loom.LoomError):
        harness.stats()
    async with Harness(loom.App("a"), clock="system") as h:
        with pytest.raises(loom.LoomError) as system:
            await h.advance(1)
    async with Harness(loom.App("a")) as h:
        with pytest.raises(loom.LoomError) as backwards:
            await h.advance(-1)
    assert code_of(system) == ("NOT_SUPPORTED", "clock")
    assert code_of(backwards) == ("INVALID_PARAMS", "seconds")


async def test_a_harness_left_with_work_under_way_says_whose() -> None:
    app = loom.App("left")

    @app.agent("sleeps", topics=["a"])
    async def sleeps(ctx: loom.Context, event: loom.Event) -> None:
        await ctx.sleep(60)

    async def leave() -> None:
        async with Harness(app) as h:
            await h.ctx.emit("a")

    with pytest.raises(AssertionError, match="sleeps"):
        await leave()


def shout(asked: Prompt) -> str:
    return asked.prompt.upper()


async def test_a_script_may_hold_errors_and_functions() -> None:
    class Verdict(BaseModel):
        good: bool

    answers: list[Any] = [ValueError("no"), shout, Verdict(good=True)]
    model = ScriptedModel(answers)
    with pytest.raises(ValueError, match="no"):
        await model.generate("a")
    assert (await model.generate("b")).text == "B"
    assert (await model.generate("c", returns=Verdict)).data == Verdict(good=True)
    await model.aclose()


@pytest.mark.requirement("CAPABILITY-SYNC", "CANCEL-SHOWN")
async def test_a_tool_that_computes_for_ever_holds_up_neither_its_caller_nor_others() -> None:
    app = loom.App("computes")
    over = threading.Event()

    @app.capability("compute", effect="pure", timeout=60)
    def compute() -> int:
        n = 0
        while not over.is_set():
            n += 1
        return n

    @app.agent("echo", topics=["ask"])
    async def echo(ctx: loom.Context, event: loom.Event[int]) -> int:
        return event.data

    async with Harness(app, clock="system") as h:
        try:
            with pytest.raises(TimeoutError):
                await h.ctx.tool("compute", timeout=0.1)
            for n in range(20):
                assert (await h.ctx.request("ask", n)).data == n
            assert h.stats()["runtime"]["threads"] == {"busy": 1, "abandoned": 1}
        finally:
            over.set()
        await h.idle()
        assert h.stats()["runtime"]["threads"] == {"busy": 0, "abandoned": 0}


@pytest.mark.requirement("CAPABILITY-SYNC")
async def test_threads_that_hang_are_counted_and_then_no_more_are_started() -> None:
    app = loom.App("hangs")
    gate = threading.Event()
    started = threading.Semaphore(0)

    @app.capability("hang", effect="unsafe", timeout=60)
    def hang() -> str:
        started.release()
        gate.wait()
        return "late"

    async with Harness(app) as h:
        calls = [asyncio.create_task(h.ctx.tool("hang", timeout=5)) for _ in range(8)]
        for _ in calls:
            await asyncio.sleep(0)
        for _ in calls:
            await asyncio.to_thread(started.acquire)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool("hang")
        with pytest.raises(AssertionError, match="threads"):
            h.check()
        assert h.stats()["runtime"]["threads"] == {"busy": 8, "abandoned": 8}
        gate.set()
        await h.idle()
        assert await h.ctx.tool("hang") == "late"

    assert (caught.value.code, caught.value.limit) == ("EXHAUSTED", "sync_threads")


async def test_what_a_plain_function_raises_is_an_error_of_its_call() -> None:
    app = loom.App("raises")

    @app.capability("stop", effect="pure")
    def stop() -> None:
        raise StopIteration

    @app.capability("exit", effect="pure")
    def leave() -> None:
        raise SystemExit(3)

    async with app.running() as ctx:
        for name in ("stop", "exit"):
            with pytest.raises(loom.LoomError) as caught:
                await ctx.tool(name)
            assert caught.value.code == "CAPABILITY_ERROR"


async def test_nested_groups_raise_their_first_error() -> None:
    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            raise KeyError("inner")

    async with Harness(loom.App("groups")) as h:
        with pytest.raises(KeyError, match="inner"):
            await h.ctx.gather(inner(), asyncio.sleep(60))


async def test_a_virtual_sleep_of_nothing_returns() -> None:
    class Source:
        def now(self) -> float:
            return 0.0

        def wall(self) -> float:
            return 0.0

        def advance(self, seconds: float, /) -> None:
            raise AssertionError(seconds)

    await VirtualClock(Source()).sleep(0)
    await SystemClock(Source()).sleep(0)


def test_the_names_of_the_package_can_be_listed_and_no_others_read() -> None:
    assert set(loom.__all__) <= set(dir(loom))
    for name in loom.__all__:
        assert getattr(loom, name) is not None
    with pytest.raises(AttributeError):
        _ = loom.nothing_of_that_name


@pytest.mark.parametrize("state", [int, str, tuple])
def test_a_state_that_could_not_be_changed_is_refused(state: Any) -> None:
    app = loom.App("state")
    with pytest.raises(loom.LoomError) as caught:

        @app.agent("counts", topics=["a"])
        class Counts(loom.Agent[state]):
            async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

    assert code_of(caught) == ("INVALID_PARAMS", "state")
