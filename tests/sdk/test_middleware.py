"""Middleware around handlers and calls, one shape for both."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

import loom
from loom.testing import Harness

pytestmark = pytest.mark.requirement("MIDDLEWARE")


class Tape:
    """Middleware that notes what passes."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    async def __call__(self, ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        what = item.name if isinstance(item, loom.Call) else item.topic
        self.notes.append(f"{self.name} > {what} by {ctx.agent}")
        try:
            result = await next(item)
        except loom.LoomError as error:
            self.notes.append(f"{self.name} ! {error.code}")
            raise
        self.notes.append(f"{self.name} < {what} {result}")
        return result


def an_app(*middleware: loom.Middleware) -> loom.App:
    app = loom.App("wrapped", middleware=middleware)

    @app.capability("double", effect="pure")
    async def double(n: int) -> int:
        return 2 * n

    @app.agent("asker", topics=["ask"])
    async def asker(ctx: loom.Context, event: loom.Event[int]) -> int:
        return await ctx.tool(double.bind(event.data))

    return app


async def test_middleware_stands_around_handlers_and_calls_in_order() -> None:
    notes: list[str] = []
    async with Harness(an_app(Tape("outer", notes), Tape("inner", notes))) as h:
        answer = await h.ctx.request("ask", 4)
        assert answer.data == 8
    assert notes == [
        "outer > ask by asker",
        "inner > ask by asker",
        "outer > double by asker",
        "inner > double by asker",
        "inner < double 8",
        "outer < double 8",
        "inner < ask 8",
        "outer < ask 8",
    ]


async def test_middleware_sees_the_calls_of_the_app_itself() -> None:
    notes: list[str] = []
    async with Harness(an_app(Tape("tape", notes))) as h:
        assert await h.ctx.tool("double", args={"n": 1}) == 2
    assert notes == ["tape > double by wrapped", "tape < double 2"]


async def test_middleware_changes_a_call_and_its_result() -> None:
    async def add_one(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        if isinstance(item, loom.Call):
            item = replace(item, args={"n": item.args["n"] + 1})
            return await next(item) + 100
        return await next(item)

    async with Harness(an_app(add_one)) as h:
        assert await h.ctx.tool("double", args={"n": 1}) == 104


async def test_middleware_that_refuses_runs_nothing() -> None:
    async def refuse(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        if isinstance(item, loom.Call):
            raise loom.errors.Denied(f"{ctx.agent} may not call {item.name}", who=ctx.agent)
        return await next(item)

    async with Harness(an_app(refuse)) as h:
        with pytest.raises(loom.errors.Denied, match="may not call double"):
            await h.ctx.request("ask", 4)
        assert h.calls("double") == 0


async def test_what_middleware_returns_without_going_on_is_the_reply() -> None:
    async def cached(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        return "kept"

    async with Harness(an_app(cached)) as h:
        answer = await h.ctx.request("ask", 4)
        assert answer.data == "kept"
        assert h.calls("double") == 0


async def test_middleware_gets_the_chunks_of_a_stream() -> None:
    async def doubled(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        chunks = await next(item)
        assert isinstance(item, loom.Call)
        assert item.streamed

        async def twice() -> AsyncIterator[int]:
            async for chunk in chunks:
                yield chunk * 2

        return twice()

    app = loom.App("streams", middleware=[doubled])

    @app.capability("count", effect="pure")
    async def count(upto: int) -> AsyncIterator[int]:
        for n in range(upto):
            yield n

    async with Harness(app) as h, h.ctx.stream(count.bind(3)) as chunks:
        assert [chunk async for chunk in chunks] == [0, 2, 4]


async def test_an_included_app_keeps_its_middleware_inside_that_of_the_including_one() -> None:
    notes: list[str] = []
    outer = loom.App("outer", middleware=[Tape("outer", notes)])
    outer.include(an_app(Tape("inner", notes)))
    async with Harness(outer) as h:
        assert (await h.ctx.request("ask", 1)).data == 2
    assert [note for note in notes if " ask " in note] == [
        "outer > ask by asker",
        "inner > ask by asker",
        "inner < ask 2",
        "outer < ask 2",
    ]


async def test_an_error_of_a_handler_passes_through_the_middleware() -> None:
    notes: list[str] = []
    app = loom.App("raises", middleware=[Tape("tape", notes)])

    @app.agent("one", topics=["go"])
    async def one(ctx: loom.Context, event: loom.Event[Any]) -> None:
        raise loom.errors.NotFound("no such thing")

    async with Harness(app) as h:
        with pytest.raises(loom.errors.NotFound):
            await h.ctx.request("go")
    assert notes == ["tape > go by one", "tape ! NOT_FOUND"]


async def test_middleware_that_hands_on_another_kind_is_told() -> None:
    async def confused(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        return await next(loom.Call(name="double", args={}, timeout=1))

    async with Harness(an_app(confused)) as h:
        with pytest.raises(loom.errors.InvalidParams, match="not Event"):
            await h.ctx.request("ask", 4)


@pytest.mark.requirement("BAD-INPUT")
def test_what_is_no_middleware_is_refused_by_its_place() -> None:
    def plain(ctx: Any, item: Any, next: Any) -> None:
        pass

    async def fine(ctx: Any, item: Any, next: Any) -> None:
        pass

    wrong: Any = plain
    with pytest.raises(loom.errors.InvalidParams) as told:
        loom.App("a", middleware=[fine, wrong])
    assert told.value.field == "middleware.1"
    alone: Any = fine
    with pytest.raises(loom.errors.InvalidParams, match="one function"):
        loom.App("a", middleware=alone)


@pytest.mark.requirement("BAD-INPUT")
def test_middleware_of_another_shape_is_refused_at_once() -> None:
    async def two(ctx: Any, item: Any) -> None: ...

    wrong: Any = two
    with pytest.raises(loom.errors.InvalidParams, match="two") as told:
        loom.App("a", middleware=[wrong])
    assert told.value.field == "middleware.0"


async def test_a_fault_of_middleware_is_its_own_and_crashes_no_agent() -> None:
    async def broken(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        await next(item)
        raise RuntimeError("hunter2")

    async with Harness(an_app(broken)) as h:
        for _ in range(20):
            with pytest.raises(loom.errors.HandlerError, match="middleware") as told:
                await h.ctx.request("ask", 4)
            assert "hunter2" not in str(told.value)
        runtime = h.stats()["runtime"]["agents"]["asker"]
    assert runtime["crashes"] == 0
