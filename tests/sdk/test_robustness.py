"""What once hung, leaked or went to the wrong place."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field

import loom
from loom.errors import ToolError
from loom.testing import Harness


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.requirement("BAD-HANDLER")
@pytest.mark.parametrize(
    "error",
    [
        ToolError("\ud800"),
        ToolError(5),  # type: ignore[arg-type]
        ToolError("field", field=object()),  # type: ignore[arg-type]
        loom.LoomError("code", code="NO_SUCH_CODE"),
        Hostile(),
    ],
    ids=["surrogate", "message", "field", "code", "text"],
)
async def test_an_error_that_cannot_be_told_ends_only_its_turn(error: Exception) -> None:
    app = loom.App("untold")

    @app.agent("worker", topics=["ask"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[bool]) -> str:
        if event.data:
            raise error
        return "fine"

    async with Harness(app) as h:
        with pytest.raises(loom.LoomError):
            await h.ctx.request("ask", True, key="one")
        assert (await h.ctx.request("ask", False, key="one")).data == "fine"


@pytest.mark.requirement("BAD-HANDLER")
@pytest.mark.parametrize("at", [0, 10, 254, 255, 256])
async def test_a_cancel_at_the_end_of_a_handler_meets_no_other_event(at: int) -> None:
    app = loom.App("cancels")
    seen: list[int] = []

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[int]) -> None:
        seen.append(event.data)
        if event.data == at:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async with Harness(app, clock="system") as h:
        for n in range(600):
            await h.ctx.emit("job", n, key="one")
        await h.idle()

    assert seen == list(range(600))


async def test_workers_that_are_cancelled_from_outside_are_replaced_and_stopping_ends() -> None:
    app = loom.App("cancels")
    seen = 0

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        nonlocal seen
        seen += 1
        await asyncio.sleep(0)

    async with asyncio.timeout(10), app.running() as ctx:
        for _ in range(20):
            await ctx.emit("job")
            for task in asyncio.all_tasks():
                if task.get_name() == "loom agent worker":
                    task.cancel()
            await asyncio.sleep(0)
        before = seen
        await ctx.emit("job")

    assert seen > before


class NoTruth:
    def __eq__(self, other: object) -> Any:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


_odd: ContextVar[object] = ContextVar("odd", default=None)


@pytest.mark.requirement("HANDLER-CONTEXT")
async def test_a_context_variable_that_cannot_be_compared_does_no_harm() -> None:
    app = loom.App("variables")
    seen: list[object] = []

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        seen.append(_odd.get())
        _odd.set(NoTruth())

    token = _odd.set(NoTruth())
    async with Harness(app) as h:
        for _ in range(5):
            await h.ctx.emit("job", key="one")
        await h.idle()
    _odd.reset(token)

    assert len(seen) == 5


async def test_what_one_app_logs_is_not_published_in_another() -> None:
    def made() -> loom.App:
        app = loom.App("same")

        @app.agent("talks", topics=["talk"])
        async def talks(ctx: loom.Context, event: loom.Event[str]) -> None:
            ctx.log.info("%s", event.data)
            ctx.log.info("%d", "no number")

        return app

    async with Harness(made()) as first, Harness(made()) as second:
        await first.ctx.emit("talk", "a secret")
        await first.idle()
        await second.idle()
        assert [e.data["message"] for e in first.events("loom.log.info")] == ["a secret"]
        assert second.events("loom.log.>") == []


async def test_who_watches_is_let_go_when_the_app_stops() -> None:
    app = loom.App("watched")
    heard, ended = asyncio.Event(), asyncio.Event()

    async def watch(ctx: loom.Context) -> None:
        async with ctx.watch(">") as events:
            async for _ in events:
                heard.set()
        ended.set()

    async with app.running() as ctx:
        watching = asyncio.create_task(watch(ctx))
        await asyncio.sleep(0)
        await ctx.emit("a")
        await heard.wait()
    async with asyncio.timeout(10):
        await watching
    assert ended.is_set()


async def test_a_request_whose_time_is_up_in_the_queue_has_timed_out() -> None:
    app = loom.App("queued")

    @app.agent("slow", topics=["ask"], concurrency=1)
    async def slow(ctx: loom.Context, event: loom.Event) -> str:
        await ctx.sleep(10)
        return "done"

    async with Harness(app) as h:
        first = asyncio.create_task(h.ctx.request("ask", timeout=60))
        await h.idle()
        queued = asyncio.create_task(h.ctx.request("ask", timeout=5))
        await h.advance(30)
        assert (await first).data == "done"
        with pytest.raises(TimeoutError):
            await queued


class Aliased(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str = Field(alias="theName")


class Computed(BaseModel):
    @computed_field
    @property
    def ratio(self) -> float:
        return float("nan")


async def test_models_with_aliases_survive_and_hidden_nan_is_found() -> None:
    app = loom.App("models")

    @app.agent("echo", topics=["ask"])
    async def echo(ctx: loom.Context, event: loom.Event[Aliased]) -> Aliased:
        return event.data

    sent = Aliased(theName="a")
    async with app.running() as ctx:
        for _ in range(2):  # the second is written without a detour
            assert (await ctx.request("ask", sent, returns=Aliased)).data == sent
        extra = Aliased.model_validate({"theName": "a", "more": float("inf")})
        for bad in (extra, Computed()):
            with pytest.raises(loom.LoomError) as caught:
                await ctx.emit("ask", bad)
            assert caught.value.code == "INVALID_PARAMS"


async def test_bytes_are_a_result_as_they_are() -> None:
    app = loom.App("bytes")

    @app.capability("raw", effect="pure")
    async def raw() -> bytes:
        return b"\x00\xff"

    async with app.running() as ctx:
        assert await ctx.tool(raw.bind()) == b"\x00\xff"
        assert await ctx.tool("raw", returns=bytes) == b"\x00\xff"


def test_parameters_that_cannot_travel_are_refused_where_they_are_written() -> None:
    app = loom.App("shapes")
    with pytest.raises(loom.LoomError) as positional:

        @app.capability("positional")
        async def positional_only(a: int, /) -> None: ...

    with pytest.raises(loom.LoomError) as field:

        @app.capability("field")
        async def with_field(a: int = Field(5, gt=3)) -> None: ...

    assert positional.value.code == field.value.code == "INVALID_PARAMS"


def test_an_app_that_cannot_be_included_leaves_nothing_behind() -> None:
    app, other = loom.App("one"), loom.App("two")
    for owner, names in ((app, ["b"]), (other, ["a", "b"])):
        for name in names:

            @owner.capability(name)
            async def made() -> None: ...

    with pytest.raises(loom.LoomError):
        app.include(other)
    assert [capability.name for capability in app.capabilities] == ["b"]


async def test_a_handler_that_never_awaits_lets_others_have_their_turn() -> None:
    app = loom.App("fair")
    handled = 0

    @app.agent("greedy", topics=["job"])
    async def greedy(ctx: loom.Context, event: loom.Event) -> None:
        nonlocal handled
        handled += 1
        sum(range(20_000))

    @app.agent("polite", topics=["ask"])
    async def polite(ctx: loom.Context, event: loom.Event) -> int:
        return handled

    async with Harness(app, clock="system") as h:
        for _ in range(900):
            await h.ctx.emit("job")
        answers = [(await h.ctx.request("ask")).data for _ in range(3)]

    assert answers[0] < 900


async def test_an_emit_that_is_cancelled_while_it_waits_is_taken_back() -> None:
    app = loom.App("withdrawn")
    gate = asyncio.Event()
    seen: list[int] = []

    @app.agent("slow", topics=["job"], concurrency=1)
    async def slow(ctx: loom.Context, event: loom.Event[int]) -> None:
        await gate.wait()
        seen.append(event.data)

    async with Harness(app) as h:
        for n in range(1_025):  # one is taken, the others fill the queue
            await h.ctx.emit("job", n)
            await h.idle()
        waiting = [asyncio.create_task(h.ctx.emit("job", n)) for n in (-1, -2, -3)]
        await h.idle()
        assert h.stats()["gauges"]["parked"] == 3
        waiting[1].cancel()
        await h.idle()
        assert h.stats()["gauges"]["parked"] == 2
        gate.set()
        await h.idle()

    assert seen == [*range(1_025), -1, -3]
