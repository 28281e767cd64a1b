"""Request and reply, spawn, threads, watching."""

import asyncio

import pytest
from pydantic import BaseModel

import loom
from loom.testing import Harness


class Sum(BaseModel):
    total: int


def calculator() -> loom.App:
    app = loom.App("calculator")

    @app.agent("adder", topics=["add"])
    async def adder(ctx: loom.Context, event: loom.Event[list[int]]) -> Sum:
        return Sum(total=sum(event.data))

    @app.agent("relay", topics=["relay"])
    async def relay(ctx: loom.Context, event: loom.Event[list[int]]) -> None:
        answer = await ctx.request("add", event.data, returns=Sum)
        await ctx.reply(answer.data)

    return app


@pytest.mark.requirement("REQUEST-REENTRANT")
async def test_a_handler_that_requests_gets_its_reply() -> None:
    async with Harness(calculator()) as h:
        answer = await h.ctx.request("relay", [1, 2, 3], returns=Sum)

    assert answer.data == Sum(total=6)
    assert answer.sender == "default/relay"


async def test_a_hundred_requests_at_once_each_get_their_own_answer() -> None:
    async with Harness(calculator()) as h:
        answers = await h.ctx.gather(*(h.ctx.request("relay", [n, n]) for n in range(100)))

    assert [answer.data["total"] for answer in answers] == [2 * n for n in range(100)]


@pytest.mark.requirement("REQUEST-UNHEARD")
async def test_a_request_nobody_hears_ends_at_once_unless_it_waits() -> None:
    async with Harness(calculator()) as h, h.ctx.watch(">"):  # who watches is not asked
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.request("nobody.here")
        waiting = asyncio.create_task(h.ctx.request("nobody.here", wait=True, timeout=5))
        await h.advance(4.9)
        assert not waiting.done()
        await h.advance(0.2)
        with pytest.raises(TimeoutError):
            await waiting

    assert caught.value.code == "UNAVAILABLE"
    assert caught.value.hint


@pytest.mark.requirement("REQUEST-DECLINED")
async def test_when_all_have_declined_the_request_ends_at_once() -> None:
    app = loom.App("declines")

    @app.agent("quiet", topics=["ask", "ask.broken"])
    async def quiet(ctx: loom.Context, event: loom.Event) -> None: ...

    @app.agent("broken", topics=["ask.broken"])
    async def broken(ctx: loom.Context, event: loom.Event) -> None:
        raise RuntimeError("no")

    async with app.running() as ctx:
        with pytest.raises(loom.LoomError) as declined:
            await ctx.request("ask")
        with pytest.raises(loom.LoomError) as failed:
            await ctx.request("ask.broken")

    assert declined.value.code == "UNAVAILABLE"
    assert failed.value.code == "HANDLER_ERROR"
    assert failed.value.who == "default/broken"


@pytest.mark.requirement("CALL-ONE-OUTCOME", "HARNESS-CLOCK")
async def test_a_request_without_an_answer_ends_by_its_deadline() -> None:
    app = loom.App("hangs")

    @app.agent("hangs", topics=["ask"])
    async def hangs(ctx: loom.Context, event: loom.Event) -> str:
        await ctx.sleep(60)
        return "late"

    async with Harness(app) as h:
        asked = asyncio.create_task(h.ctx.request("ask", timeout=5))
        await h.advance(4.9)
        assert not asked.done()
        await h.advance(0.2)
        with pytest.raises(TimeoutError) as caught:
            await asked
        assert isinstance(caught.value, loom.LoomError)
        assert caught.value.code == "TIMEOUT"
        await h.advance(60)
        assert h.stats()["requests"]["late"] == 1
        assert h.stats()["requests"]["pending"] == 0


@pytest.mark.requirement("REQUEST-DEADLOCK")
async def test_a_request_into_the_lane_that_waits_for_it_is_refused_at_once() -> None:
    app = loom.App("cycle")
    codes: list[str] = []

    @app.agent("a", topics=["a"])
    async def a(ctx: loom.Context, event: loom.Event) -> str:
        return (await ctx.request("b")).data

    @app.agent("b", topics=["b"])
    async def b(ctx: loom.Context, event: loom.Event) -> str:
        try:
            await ctx.request("a")
        except loom.LoomError as error:
            codes.append(error.code)
        return "broken out"

    async with app.running() as ctx:
        answer = await ctx.request("a")

    assert codes == ["DEADLOCK"]
    assert answer.data == "broken out"


@pytest.mark.requirement("REQUEST-MANY")
async def test_request_many_gives_answers_failures_and_what_is_missing() -> None:
    app = loom.App("many")

    @app.agent("one", topics=["ask"])
    async def one(ctx: loom.Context, event: loom.Event) -> int:
        return 1

    @app.agent("two", topics=["ask"])
    async def two(ctx: loom.Context, event: loom.Event) -> int:
        return 2

    @app.agent("broken", topics=["ask"])
    async def broken(ctx: loom.Context, event: loom.Event) -> int:
        raise RuntimeError("no")

    @app.agent("hangs", topics=["ask"])
    async def hangs(ctx: loom.Context, event: loom.Event) -> None:
        await ctx.sleep(60)

    async with Harness(app) as h:
        first = await h.ctx.request_many("ask", first_k=1, timeout=10)
        asked = asyncio.create_task(h.ctx.request_many("ask", timeout=5))
        await h.advance(6)
        replies = await asked
        await h.advance(60)
        nobody = await h.ctx.request_many("nobody.here")

    assert len(first.items) == 1
    assert sorted(item.data for item in replies.items) == [1, 2]
    assert [(error.code, error.who) for error in replies.failures] == [
        ("HANDLER_ERROR", "default/broken")
    ]
    assert replies.missing == 1
    assert (nobody.items, nobody.failures, nobody.missing) == ([], [], 0)


async def test_a_value_returned_when_nothing_was_asked_is_an_error_at_the_agent() -> None:
    app = loom.App("returns")

    @app.agent("returns", topics=["tell"])
    async def returns(ctx: loom.Context, event: loom.Event) -> str:
        return "nobody asked"

    async with Harness(app) as h:
        await h.ctx.emit("tell")
        await h.idle()
        (error,) = h.events("loom.error.handler_error")

    assert error.data["field"] == "return"


async def test_a_reply_when_nothing_was_asked_is_refused() -> None:
    app = loom.App("replies")
    codes: list[tuple[str, str | None]] = []

    @app.agent("replies", topics=["tell"])
    async def replies(ctx: loom.Context, event: loom.Event) -> None:
        try:
            await ctx.reply("hello")
        except loom.LoomError as error:
            codes.append((error.code, error.field))

    async with Harness(app) as h:
        await h.ctx.emit("tell")
        await h.idle()

    assert codes == [("INVALID_PARAMS", "reply")]


async def test_spawn_starts_a_new_thread_at_one_agent() -> None:
    app = loom.App("spawns")
    threads: list[str | None] = []

    @app.agent("child", topics=["unused"])
    async def child(ctx: loom.Context, event: loom.Event[int]) -> None:
        threads.append(ctx.thread_id)

    @app.agent("parent", topics=["go"])
    async def parent(ctx: loom.Context, event: loom.Event) -> None:
        first = await ctx.spawn("child", 1)
        second = await ctx.spawn("child", 2)
        assert len({first, second, ctx.thread_id}) == 3
        await ctx.emit("spawned", [first, second])
        with pytest.raises(loom.LoomError) as caught:
            await ctx.spawn("stranger")
        assert caught.value.code == "NOT_FOUND"

    async with Harness(app) as h:
        await h.ctx.emit("go")
        await h.idle()
        (spawned,) = h.events("spawned")
        assert not h.events("loom.error.>")

    assert sorted(threads, key=str) == sorted(spawned.data)


async def test_members_of_a_thread_hear_its_broadcasts_and_replies() -> None:
    app = loom.App("threads")

    @app.agent("answers", topics=["ask"])
    async def answers(ctx: loom.Context, event: loom.Event) -> str:
        return "the answer"

    @app.agent("asks", topics=["go"])
    async def asks(ctx: loom.Context, event: loom.Event) -> None:
        assert ctx.thread_id is not None
        async with ctx.join_thread(ctx.thread_id) as thread:
            await thread.broadcast({"hello": "all"})
            await ctx.request("ask")
            first, second = await anext(thread.events), await anext(thread.events)
        await ctx.emit("heard", [first.topic, second.topic, first.data, second.data])

    async with Harness(app) as h:
        go = await h.ctx.emit("go")
        await h.idle()
        (heard,) = h.events("heard")

    assert heard.data == [
        f"thread.{go.id}.broadcast",
        f"thread.{go.id}.reply",
        {"hello": "all"},
        "the answer",
    ]


async def test_a_cancelled_request_is_taken_back() -> None:
    app = loom.App("cancels")
    gate = asyncio.Event()

    @app.agent("hangs", topics=["ask"])
    async def hangs(ctx: loom.Context, event: loom.Event) -> None:
        await gate.wait()

    async with Harness(app) as h:
        asked = asyncio.create_task(h.ctx.request("ask"))
        await h.idle()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert h.stats()["requests"]["pending"] == 0
        assert h.stats()["requests"]["cancelled"] == 1
        gate.set()


async def test_a_request_that_is_lost_at_once_ends_at_once() -> None:
    app = loom.App("lagging")
    gate = asyncio.Event()

    @app.agent("slow", topics=["job"], concurrency=1)
    async def slow(ctx: loom.Context, event: loom.Event) -> None:
        await gate.wait()

    async with Harness(app) as h:
        for _ in range(1_025):  # one is taken, the others fill the queue
            await h.ctx.emit("job")
            await h.idle()
        parked = asyncio.create_task(h.ctx.emit("job"))
        await h.advance(1.1)  # its wait for room ends, and the agent lags
        assert (await parked).matched is not None
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.request("job")
        gate.set()
        await h.idle()

    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.requirement("REQUEST-MANY")
async def test_an_answer_of_another_type_is_a_failure_of_who_gave_it() -> None:
    app = loom.App("typed")

    @app.agent("one", topics=["ask"])
    async def one(ctx: loom.Context, event: loom.Event) -> Sum:
        return Sum(total=1)

    @app.agent("two", topics=["ask"])
    async def two(ctx: loom.Context, event: loom.Event) -> dict[str, str]:
        return {"total": "a lot"}

    async with Harness(app) as h:
        replies = await h.ctx.request_many("ask", returns=Sum, timeout=5)

    assert [reply.data.total for reply in replies.items] == [1]
    (failure,) = replies.failures
    assert (failure.code, failure.field) == ("INVALID_PARAMS", "reply.total")
    assert failure.who == "default/two"
    assert replies.missing == 0


async def test_an_event_and_a_request_can_be_put_into_a_thread() -> None:
    app = loom.App("placed")

    @app.agent("answers", topics=["ask", "tell"])
    async def answers(ctx: loom.Context, event: loom.Event) -> str | None:
        return ctx.thread_id if event.wants_reply else None

    async with Harness(app) as h:
        answer = await h.ctx.request("ask", thread="trip-7")
        await h.ctx.emit("tell", thread="trip-7")
        await h.idle()
        assert [event.thread_id for event in h.events("tell")] == ["trip-7"]

    assert (answer.data, answer.topic) == ("trip-7", "thread.trip-7.reply")


async def test_a_watcher_of_several_filters_gets_each_event_once() -> None:
    async with Harness(calculator()) as h, h.ctx.watch("a.*", "*.b", qos="batched") as events:
        for topic in ("a.a", "a.b", "c.c", "c.b"):
            await h.ctx.emit(topic)
        heard = [(await anext(events)).topic for _ in range(3)]

    assert heard == ["a.a", "a.b", "c.b"]


async def test_an_agent_can_be_started_while_the_app_runs_and_is_started_once() -> None:
    started: list[str] = []
    other = loom.App("other")

    @other.agent("late")
    class Late(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            started.append(ctx.agent)

        @loom.on("late")
        async def late(self, ctx: loom.Context, event: loom.Event) -> str:
            return "here"

    async with Harness(calculator()) as h:
        await h.ctx.emit("late")  # before it is there: nobody hears it
        await h.ctx.gather(*(h.ctx.ensure_agent(other.agents[0]) for _ in range(3)))
        assert (await h.ctx.request("late")).data == "here"
        assert "late" in [info.name for info in await h.ctx.agents()]

    assert started == ["late"]
