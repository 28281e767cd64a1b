"""Capabilities: schemas, calls, streams, threads, what goes wrong."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

import loom
from loom.errors import ToolError
from loom.testing import Harness


class Note(BaseModel):
    title: str
    stars: int = 0


def notebook() -> loom.App:
    app = loom.App("notebook")

    @app.capability("notes.search", effect="pure", timeout=5)
    async def search(query: str, limit: int = 5) -> list[Note]:
        """Search my notes."""
        return [Note(title=f"{query} {n}") for n in range(limit)]

    @app.capability("notes.count", effect="pure")
    async def count(upto: int) -> AsyncIterator[int]:
        for n in range(upto):
            yield n

    @app.capability("notes.thread", effect="pure")
    def thread(name: str) -> str:
        return f"{name} in {threading.current_thread().name}"

    @app.capability("notes.wrong", effect="pure")
    async def wrong() -> int:
        return "not a number"  # type: ignore[return-value]

    @app.capability("notes.breaks", effect="pure")
    async def breaks() -> int:
        raise RuntimeError("password: hunter2")

    return app


def made(app: loom.App, name: str) -> loom.Capability[..., Any]:
    return next(c for c in app.capabilities if c.name == name)


async def test_a_bound_call_comes_back_as_its_declared_type() -> None:
    app = notebook()
    search = made(app, "notes.search")
    async with app.running() as ctx:
        found = await ctx.tool(search.bind(query="loom", limit=2))
        by_name = await ctx.tool("notes.search", args={"query": "loom"}, returns=list[Note])
        plain = await ctx.tool("notes.search", args={"query": "loom", "limit": 1})

    assert found == [Note(title="loom 0"), Note(title="loom 1")]
    assert len(by_name) == 5
    assert plain == [{"title": "loom 0", "stars": 0}]


@pytest.mark.requirement("CAPABILITY-LOCAL")
async def test_calling_the_function_is_a_plain_local_call() -> None:
    search = made(notebook(), "notes.search")
    assert await search("loom", 1) == [Note(title="loom 0")]
    assert search.__doc__ == "Search my notes."


@pytest.mark.requirement("CALL-SCHEMA", "BAD-INPUT")
async def test_input_is_checked_at_the_provider_and_output_at_the_caller() -> None:
    app = notebook()
    async with app.running() as ctx:
        for args, field in (
            ({"query": 5}, "args.query"),
            ({}, "args.query"),
            ({"query": "a", "more": 1}, "args.more"),
        ):
            with pytest.raises(loom.LoomError) as caught:
                await ctx.tool("notes.search", args=args)
            assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", field)
        with pytest.raises(loom.LoomError) as returned:
            await ctx.tool(made(app, "notes.wrong").bind())
        with pytest.raises(loom.LoomError) as bound:
            made(app, "notes.search").bind(1, 2, 3)

    assert (returned.value.code, returned.value.field) == ("CAPABILITY_ERROR", "result")
    assert (bound.value.code, bound.value.field) == ("INVALID_PARAMS", "args")


@pytest.mark.requirement("CALL-SCHEMA")
async def test_what_takes_nothing_is_given_nothing_but_its_effect_id() -> None:
    app = loom.App("plain")

    @app.capability("tick", effect="idempotent")
    async def tick(effect_id: str = "") -> str:
        return effect_id

    async with app.running() as ctx:
        assert await ctx.tool("tick") != ""
        with pytest.raises(loom.LoomError) as caught:
            await ctx.tool("tick", args={"effect_id": "mine"})

    assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", "args.effect_id")


@pytest.mark.requirement("ERRORS-NO-STACK")
async def test_what_a_capability_raises_reaches_the_caller_without_its_text() -> None:
    app = notebook()
    async with Harness(app) as h:
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool("notes.breaks")
        await h.idle()
        (event,) = h.events("loom.error.capability_error")

    assert caught.value.code == "CAPABILITY_ERROR"
    assert caught.value.who == "notes.breaks"
    assert "RuntimeError" in caught.value.message
    assert "hunter2" not in str(caught.value) + event.payload.decode()


@pytest.mark.requirement("CALL-UNKNOWN")
async def test_an_unknown_capability_is_not_found() -> None:
    async with notebook().running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.tool("notes.serach")

    assert caught.value.code == "NOT_FOUND"
    assert caught.value.hint


@pytest.mark.requirement("CAPABILITY-SYNC")
async def test_plain_functions_run_in_threads_of_their_own() -> None:
    async with notebook().running() as ctx:
        names = await ctx.gather(
            *(ctx.tool("notes.thread", args={"name": str(n)}) for n in range(40))
        )

    threads = {name.partition(" in ")[2] for name in names}
    assert threading.current_thread().name not in threads
    assert [name.partition(" in ")[0] for name in names] == [str(n) for n in range(40)]


@pytest.mark.requirement("STREAM-CREDIT")
@pytest.mark.in_process("elsewhere chunks are on their way besides")
async def test_a_stream_is_never_ahead_of_its_reader_by_more_than_its_credit() -> None:
    app = loom.App("streams")
    produced = 0

    @app.capability("numbers", effect="pure")
    async def numbers(upto: int) -> AsyncIterator[int]:
        nonlocal produced
        for n in range(upto):
            produced += 1
            yield n

    read: list[int] = []
    async with app.running() as ctx:
        async with ctx.stream(numbers.bind(1_000)) as chunks:
            async for chunk in chunks:
                read.append(chunk)
                assert produced - len(read) <= 64 + 1
        collected = await ctx.tool(numbers.bind(100))

    assert read == list(range(1_000))
    assert collected == list(range(100))


@pytest.mark.requirement("STREAM-END", "CALL-CANCEL")
async def test_leaving_a_stream_early_cancels_its_producer() -> None:
    app = loom.App("streams")
    ended = asyncio.Event()

    @app.capability("numbers", effect="pure")
    async def numbers() -> AsyncIterator[int]:
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            ended.set()

    async with app.running() as ctx:
        async with ctx.stream("numbers") as chunks:
            assert [await anext(chunks), await anext(chunks)] == [0, 1]
        async with asyncio.timeout(10):
            await ended.wait()


@pytest.mark.requirement("STREAM-END")
async def test_a_stream_that_fails_raises_after_the_chunks_that_came() -> None:
    app = loom.App("streams")

    @app.capability("numbers", effect="pure")
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise RuntimeError("no more")

    read: list[int] = []
    async with app.running() as ctx, ctx.stream(numbers.bind()) as chunks:
        read.append(await anext(chunks))
        read.append(await anext(chunks))
        with pytest.raises(loom.LoomError) as caught:
            await anext(chunks)

    assert read == [1, 2]
    assert caught.value.code == "CAPABILITY_ERROR"


async def test_a_plain_capability_can_be_streamed_as_one_chunk() -> None:
    app = notebook()
    args = {"query": "a", "limit": 1}
    async with app.running() as ctx, ctx.stream("notes.search", args=args) as chunks:
        read = [chunk async for chunk in chunks]

    assert read == [[{"title": "a 0", "stars": 0}]]


@pytest.mark.requirement("CALL-HUNG", "CALL-INDETERMINATE", "CALL-LATE")
@pytest.mark.parametrize(("effect", "code"), [("pure", "TIMEOUT"), ("unsafe", "INDETERMINATE")])
async def test_a_provider_that_hangs_costs_its_caller_the_deadline(effect: Any, code: str) -> None:
    app = loom.App("hangs")
    cancelled = asyncio.Event()

    @app.capability("hang", effect=effect)
    async def hang() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    async with Harness(app) as h:
        called = asyncio.create_task(h.ctx.tool("hang", timeout=5))
        await h.advance(4.9)
        assert not called.done()
        await h.advance(0.2)
        with pytest.raises(loom.LoomError) as caught:
            await called
        await h.idle()
        assert cancelled.is_set()
        assert h.stats()["calls"]["pending"] == 0

    assert caught.value.code == code


@pytest.mark.requirement("CALL-CANCEL")
async def test_cancelling_a_call_cancels_the_providers_task_and_nothing_else() -> None:
    app = loom.App("cancels")
    started = asyncio.Event()
    cancelled = 0

    @app.capability("hang", effect="pure")
    async def hang(really: bool) -> str:
        nonlocal cancelled
        if not really:
            return "quick"
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return "never"

    async with Harness(app) as h:
        for _ in range(5):
            started.clear()
            called = asyncio.create_task(h.ctx.tool(hang.bind(really=True)))
            await started.wait()
            called.cancel()
            with pytest.raises(asyncio.CancelledError):
                await called
            assert await h.ctx.tool(hang.bind(really=False)) == "quick"
            await h.idle()
        assert h.stats()["gauges"]["leased"] <= 1  # the harness's recorder holds its last event

    assert cancelled == 5


@pytest.mark.requirement("CALL-DEADLINE")
async def test_a_call_inside_a_turn_never_outlives_the_turns_deadline() -> None:
    app = loom.App("nested")
    codes: list[str] = []

    @app.capability("hang", effect="pure", timeout=60)
    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    @app.agent("asks", topics=["ask"])
    async def asks(ctx: loom.Context, event: loom.Event) -> None:
        try:
            await ctx.tool("hang")
        except loom.LoomError as error:
            codes.append(error.code)
            raise

    async with Harness(app) as h:
        asked = asyncio.create_task(h.ctx.request("ask", timeout=5))
        await h.advance(6)
        with pytest.raises(TimeoutError):
            await asked
        await h.idle()

    assert codes == ["TIMEOUT"]


async def test_the_effect_id_reaches_the_function_and_is_not_an_argument() -> None:
    app = loom.App("effects")

    @app.capability("pay", effect="idempotent")
    async def pay(amount: int, effect_id: str = "") -> str:
        return effect_id

    async with app.running() as ctx:
        first = await ctx.tool(pay.bind(amount=1))
        second = await ctx.tool(pay.bind(amount=1))
        (info,) = await ctx.capabilities()

    assert first
    assert second
    assert first != second
    assert list(info.input["properties"]) == ["amount"]


async def test_methods_of_an_agent_are_capabilities_with_its_object() -> None:
    app = loom.App("methods")

    @app.agent("counter")
    class Counter(loom.Agent):
        def __init__(self) -> None:
            self.n = 0

        @loom.capability("counter.add", effect="unsafe")
        async def add(self, by: int) -> int:
            """Add to the count."""
            self.n += by
            return self.n

    async with app.running() as ctx:
        assert await ctx.tool("counter.add", args={"by": 2}) == 2
        assert await ctx.tool("counter.add", args={"by": 3}) == 5
        (agent,) = await ctx.agents(capability="counter.add")
        assert await ctx.agents("counter") == await ctx.agents("default/counter") == [agent]
        (info,) = await ctx.capabilities("counter.add")
        assert (info.queued, info.leased) == (0, 0)
        assert await ctx.agents("nobody") == []

    assert agent.name == "counter"
    assert await Counter().add(1) == 1


@pytest.mark.requirement("DIRECTORY-LIST")
async def test_the_directory_lists_capabilities_with_their_schemas() -> None:
    async with notebook().running() as ctx:
        infos = {info.name: info for info in await ctx.capabilities("notes.*")}

    search = infos["notes.search"]
    assert search.description == "Search my notes."
    assert (search.effect, search.timeout, search.provider) == ("pure", 5, "notebook")
    assert search.input["required"] == ["query"]
    assert search.output["type"] == "array"
    assert infos["notes.count"].streams


@pytest.mark.requirement("BAD-HANDLER")
@pytest.mark.parametrize("kind", ["nan", "cycle", "huge", "surrogate", "stranger"])
async def test_a_result_that_cannot_travel_is_a_typed_error_and_the_next_call_works(
    kind: str,
) -> None:
    app = loom.App("results")

    @app.capability("result", effect="pure")
    async def result(kind: str) -> Any:
        cycle: list[Any] = []
        cycle.append(cycle)
        return {
            "nan": float("nan"),
            "cycle": cycle,
            "huge": "x" * 100_000_000 if kind == "huge" else "",
            "surrogate": "\ud800",
            "stranger": object(),
            "good": 1,
        }[kind]

    async with app.running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.tool(result.bind(kind=kind))
        assert await ctx.tool(result.bind(kind="good")) == 1

    assert caught.value.code == "INVALID_PARAMS"
    assert caught.value.field == "result"


async def test_plain_functions_that_wait_for_a_thread_are_not_started() -> None:
    app = loom.App("threads")
    gate = threading.Event()
    all_taken = threading.Barrier(9, timeout=20)

    @app.capability("block", effect="unsafe", timeout=60)
    def block() -> None:
        if not gate.is_set():
            all_taken.wait()
        gate.wait()

    async with Harness(app, clock="system") as h:
        calls = [asyncio.create_task(h.ctx.tool(block.bind(), timeout=30)) for _ in range(20)]
        await asyncio.to_thread(all_taken.wait)
        late = asyncio.create_task(h.ctx.tool(block.bind(), timeout=0.05))
        with pytest.raises(loom.LoomError) as caught:
            await late
        gate.set()
        await asyncio.gather(*calls)

    assert caught.value.code == "TIMEOUT"  # not INDETERMINATE: it never began


async def test_an_answer_after_the_deadline_is_late_also_when_the_loop_was_blocked() -> None:
    app = loom.App("late")

    @app.agent("blocks", topics=["ask"])
    async def blocks(ctx: loom.Context, event: loom.Event) -> str:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass  # blocks the loop until the deadline has passed
        return "late"

    async with Harness(app, clock="system") as h:
        ctx = h.ctx
        with pytest.raises(loom.LoomError) as caught:
            await ctx.request("ask", timeout=0.02)

    assert caught.value.code == "TIMEOUT"


async def test_an_error_raised_on_purpose_travels_whole() -> None:
    app = loom.App("errors")

    @app.capability("flaky", effect="pure")
    async def flaky() -> None:
        raise ToolError("try me again", hint="later", field="f", limit="mine", retry=True)

    @app.agent("asks", topics=["ask"])
    async def asks(ctx: loom.Context, event: loom.Event) -> None:
        await ctx.tool(flaky.bind())

    async with app.running() as ctx:
        for attempt in (ctx.tool("flaky"), ctx.request("ask")):
            with pytest.raises(ToolError) as caught:
                await attempt
            error = caught.value
            told = (error.message, error.hint, error.field, error.limit, error.retry)
            assert told == ("try me again", "later", "f", "mine", True)


async def test_what_was_perhaps_meant_is_named() -> None:
    app = notebook()
    async with app.running() as ctx:
        with pytest.raises(loom.LoomError) as caught:
            await ctx.tool("notes.serach")
        with pytest.raises(loom.LoomError) as unknown:
            made(app, "notes.search").bind(qury="a")
        with pytest.raises(loom.LoomError) as option:
            await ctx.emit("a", 1, kye="b")  # type: ignore[call-arg]

    assert "notes.search" in (caught.value.hint or "")
    assert "qury" in unknown.value.message
    assert (option.value.code, option.value.field) == ("INVALID_PARAMS", "kye")
