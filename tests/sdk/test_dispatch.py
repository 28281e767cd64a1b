"""How turns run: order in a lane, lanes in parallel, real tasks, a clean worker for every event."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from pydantic import BaseModel

import loom
from loom.runtime.running import running
from loom.testing import Harness


class Question(BaseModel):
    text: str


@pytest.mark.requirement("LANE-ORDER", "EVENT-ORDER", "LANE-KEY")
async def test_events_of_one_key_are_handled_one_after_the_other_in_order() -> None:
    app = loom.App("lanes")
    seen: list[tuple[str, int]] = []
    running: dict[str, int] = {"a": 0, "b": 0}
    most = 0

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event[dict[str, int]]) -> None:
        nonlocal most
        key = event.key or ""
        running[key] += 1
        most = max(most, running[key])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        seen.append((key, event.data["n"]))
        running[key] -= 1

    async with Harness(app) as h:
        for n in range(50):
            await h.ctx.emit("job", {"n": n}, key="ab"[n % 2])
        await h.idle()

    assert most == 1
    assert [n for key, n in seen if key == "a"] == list(range(0, 50, 2))
    assert [n for key, n in seen if key == "b"] == list(range(1, 50, 2))


@pytest.mark.requirement("LANE-PARALLEL")
async def test_lanes_run_in_parallel_up_to_the_agents_concurrency() -> None:
    app = loom.App("lanes")
    gate = asyncio.Event()
    running = 0
    most = 0

    @app.agent("worker", topics=["job"], concurrency=5)
    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with Harness(app) as h:
        for _ in range(20):
            await h.ctx.emit("job")
        await h.idle()
        assert running == 5
        gate.set()
        await h.idle()

    assert most == 5
    assert running == 0


@pytest.mark.requirement("EVENT-ONCE")
async def test_an_event_that_matches_two_filters_is_delivered_once() -> None:
    app = loom.App("once")
    seen: list[str] = []

    @app.agent("worker", topics=["a.*", "a.>", "*.b"])
    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        seen.append(event.topic)

    async with Harness(app) as h:
        receipt = await h.ctx.emit("a.b")
        await h.idle()
        assert receipt.matched == 2  # the agent and the harness's own recorder

    assert seen == ["a.b"]


@pytest.mark.requirement("HANDLER-TIMEOUT")
async def test_a_handlers_own_timeout_cancels_only_itself() -> None:
    app = loom.App("timeouts")
    ended: list[str] = []
    all_ended = asyncio.Event()

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[str]) -> None:
        if event.data == "slow":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        ended.append(event.data)
        if len(ended) == 4:
            all_ended.set()

    async with Harness(app, clock="system") as h:
        for data in ("slow", "quick", "slow", "quick"):
            await h.ctx.emit("job", data, key="one")
        await h.idle()
        async with asyncio.timeout(10):
            await all_ended.wait()

    assert ended == ["slow", "quick", "slow", "quick"]


_colour: ContextVar[str] = ContextVar("colour", default="none")


@pytest.mark.requirement("HANDLER-CONTEXT")
async def test_context_variables_of_one_event_are_not_seen_by_the_next() -> None:
    app = loom.App("variables")
    seen: list[str] = []

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        seen.append(_colour.get())
        _colour.set("red")

    async with Harness(app) as h:
        for _ in range(10):
            await h.ctx.emit("job", key="one")
        await h.idle()

    assert seen == ["none"] * 10


@pytest.mark.requirement("BAD-HANDLER")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_whatever_a_handler_raises_ends_only_its_turn(error: type[BaseException]) -> None:
    app = loom.App("raises")
    seen: list[int] = []

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[int]) -> None:
        if event.data == 1:
            raise error("a secret: hunter2")
        seen.append(event.data)

    async with Harness(app) as h:
        for n in range(3):
            await h.ctx.emit("job", n, key="one")
        await h.advance(1)  # what is no Exception is a crash: the agent starts again
        told = h.events("loom.error.handler_error")

    assert seen == [0, 2]
    assert {event.data["who"] for event in told} == {"default/worker"}
    assert "hunter2" not in told[0].payload.decode()


async def test_a_handler_that_raises_cancelled_without_being_cancelled_has_failed() -> None:
    app = loom.App("raises")
    seen: list[int] = []

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[int]) -> None:
        if event.data == 0:
            raise asyncio.CancelledError
        seen.append(event.data)

    async with Harness(app) as h:
        await h.ctx.emit("job", 0, key="one")
        await h.ctx.emit("job", 1, key="one")
        await h.idle()
        assert len(h.events("loom.error.handler_error")) == 1

    assert seen == [1]


async def test_handlers_that_do_not_suspend_are_run_by_few_workers() -> None:
    app = loom.App("few")
    tasks: set[asyncio.Task[None] | None] = set()

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        tasks.add(asyncio.current_task())

    async with Harness(app) as h:
        for _ in range(500):
            await h.ctx.emit("job")
        await h.idle()

    assert len(tasks) <= 3


@pytest.mark.requirement("HANDLER-TYPES", "BAD-INPUT")
async def test_data_that_does_not_fit_never_reaches_the_handler() -> None:
    app = loom.App("typed")
    seen: list[Question] = []

    @app.agent("worker", topics=["ask"])
    async def worker(ctx: loom.Context, event: loom.Event[Question]) -> str:
        seen.append(event.data)
        return "ok"

    async with Harness(app) as h:
        good = await h.ctx.request("ask", Question(text="why"))
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.request("ask", {"txet": "why"})
        await h.idle()
        assert len(h.events("loom.error.invalid_params")) == 1

    assert good.data == "ok"
    assert seen == [Question(text="why")]
    assert caught.value.code == "INVALID_PARAMS"
    assert caught.value.field == "data.text"


@pytest.mark.requirement("HANDLER-TYPES")
async def test_a_handler_may_use_a_type_of_the_function_around_it_and_what_is_assigned_later() -> (
    None
):
    class Local(BaseModel):
        size: int

    app = loom.App("app")

    @app.agent("sizes", topics=["box"])
    async def _(ctx: loom.Context, event: "loom.Event[Local]") -> None:
        seen.append(Local(size=event.data.size))

    seen: list[Local] = []
    async with Harness(app) as h:
        await h.ctx.emit("box", {"size": 3})
        await h.idle()
    assert seen == [Local(size=3)]


@pytest.mark.requirement("EVENT-IMMUTABLE")
async def test_an_event_cannot_be_changed_and_is_the_same_for_every_receiver() -> None:
    app = loom.App("immutable")
    seen: list[list[int]] = []

    @app.agent("first", topics=["job"])
    async def first(ctx: loom.Context, event: loom.Event[list[int]]) -> None:
        event.data.append(99)
        seen.append(event.data)
        for attribute in ("data", "topic", "sender"):
            with pytest.raises(AttributeError):
                setattr(event, attribute, "changed")

    @app.agent("second", topics=["job"])
    async def second(ctx: loom.Context, event: loom.Event[list[int]]) -> None:
        seen.append(event.data)

    async with Harness(app) as h:
        await h.ctx.emit("job", [1])
        await h.idle()
        assert not h.events("loom.error.>")

    assert sorted(seen) == [[1], [1, 99]]


@pytest.mark.requirement("EVENT-HOPS")
async def test_events_that_answer_each_other_end_at_the_hop_limit() -> None:
    app = loom.App("loops")
    errors: list[loom.LoomError] = []

    @app.agent("ping", topics=["ping"])
    async def ping(ctx: loom.Context, event: loom.Event) -> None:
        try:
            await ctx.emit("pong")
        except loom.LoomError as error:
            errors.append(error)

    @app.agent("pong", topics=["pong"])
    async def pong(ctx: loom.Context, event: loom.Event) -> None:
        try:
            await ctx.emit("ping")
        except loom.LoomError as error:
            errors.append(error)

    async with Harness(app) as h:
        await h.ctx.emit("ping")
        await h.idle()
        assert len(h.events("ping")) + len(h.events("pong")) == 17

    assert [(error.code, error.field) for error in errors] == [("EXHAUSTED", "hop")]


@pytest.mark.requirement("RUN-STAMPED", "SENDER-STAMPED")
async def test_run_thread_cause_and_sender_come_from_the_turn() -> None:
    app = loom.App("causes", namespace="shop")

    @app.agent("first", topics=["one"])
    async def first(ctx: loom.Context, event: loom.Event) -> None:
        await ctx.emit("two", {"sender": "somebody/else"})

    async with Harness(app) as h:
        await h.ctx.emit("one")
        await h.idle()
        (one,), (two,) = h.events("one"), h.events("two")

    assert one.run_id == one.id == one.thread_id
    assert one.hop == 0
    assert two.run_id == one.id
    assert two.thread_id == one.thread_id
    assert two.causation_id == one.id
    assert two.hop == 1
    assert (one.sender, two.sender) == ("shop/causes", "shop/first")
    assert two.namespace == "shop"


@pytest.mark.requirement("QOS-SELF")
@pytest.mark.in_process("elsewhere what is taken ahead makes room")
async def test_a_handler_that_fills_its_own_queue_is_told_at_once() -> None:
    app = loom.App("self")
    codes: list[str] = []

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[bool]) -> None:
        if event.data:
            for _ in range(2_000):
                try:
                    await ctx.emit("job", False)
                except loom.LoomError as error:
                    codes.append(error.code)
                    return

    async with Harness(app, clock="system") as h:
        await h.ctx.emit("job", True)
        await h.idle()

    assert codes == ["EXHAUSTED"]


@pytest.mark.requirement("QOS-BATCHED")
async def test_a_batched_publisher_waits_for_room_and_loses_nothing() -> None:
    app = loom.App("batched")
    seen = 0

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event[int]) -> None:
        nonlocal seen
        seen += 1

    async with Harness(app, clock="system") as h:
        for n in range(5_000):
            await h.ctx.emit("job", n)
        await h.idle()
        assert set(h.stats()["events"]["dropped"].values()) == {0}

    assert seen == 5_000


@pytest.mark.requirement("QOS-REALTIME", "LOSS-TOLD")
async def test_realtime_keeps_the_newest_and_counts_what_it_drops() -> None:
    app = loom.App("realtime")
    gate = asyncio.Event()
    seen: list[int] = []

    @app.agent("worker", topics=["tick"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[int]) -> None:
        await gate.wait()
        seen.append(event.data)

    async with Harness(app) as h:
        for n in range(3_000):
            await h.ctx.emit("tick", n, qos="realtime")
            if n % 100 == 0:
                await h.idle()
        gate.set()
        await h.idle()
        lost = h.stats()["events"]["dropped"]["overflow"]
        assert len(h.events("loom.dropped.overflow")) == 1

    assert seen[-1] == 2_999
    assert len(seen) + lost == 3_000


@pytest.mark.requirement("QOS-LOWERED")
@pytest.mark.in_process("elsewhere what is taken ahead is kept besides the newest")
async def test_an_agent_that_takes_its_events_as_realtime_keeps_the_newest_and_stops_nobody() -> (
    None
):
    app = loom.App("board")
    shown: list[int] = []
    stored: list[int] = []
    gate = asyncio.Event()

    @app.agent("board", topics=["price"], qos="realtime", concurrency=1)
    async def board(ctx: loom.Context, event: loom.Event[int]) -> None:
        await gate.wait()
        shown.append(event.data)

    @app.agent("store", topics=["price"], concurrency=1)
    async def store(ctx: loom.Context, event: loom.Event[int]) -> None:
        stored.append(event.data)

    async with Harness(app) as h:
        for price in range(1_500):
            await h.ctx.emit("price", price)
            if price % 100 == 99:
                await h.idle()
        lost = h.stats()["events"]["dropped"]
        gate.set()
    assert stored == list(range(1_500))
    assert shown[0] == 0
    assert shown[1:] == list(range(1_500 - 1_024, 1_500))
    assert lost == {**dict.fromkeys(lost, 0), "overflow": 1_500 - 1_025}


@pytest.mark.requirement("BAD-INPUT")
def test_an_agent_that_would_raise_its_class_is_refused() -> None:
    wrong: Any = "batched"
    with pytest.raises(loom.errors.InvalidParams) as told:

        @loom.App("a").agent("x", topics=["x"], qos=wrong)
        async def x(ctx: loom.Context, event: loom.Event) -> None: ...

    assert told.value.field == "qos"


@pytest.mark.requirement("DIRECTORY-LOAD")
@pytest.mark.in_process("elsewhere what is taken ahead is leased")
async def test_the_directory_says_what_an_agent_has_to_do_and_has_done() -> None:
    app = loom.App("load")
    gate = asyncio.Event()

    @app.agent("worker", topics=["job"], concurrency=1)
    async def worker(ctx: loom.Context, event: loom.Event[str]) -> None:
        await gate.wait()
        if event.data == "bad":
            raise ValueError

    async with Harness(app) as h:
        for data in ("good", "bad", "good"):
            await h.ctx.emit("job", data, key="k")
        await h.idle()
        (busy,) = await h.ctx.agents("worker")
        gate.set()
        await h.idle()
        (done,) = await h.ctx.agents("worker")
    assert (busy.queued, busy.leased, busy.delivered) == (2, 1, 0)
    assert (done.queued, done.leased, done.delivered, done.failed) == (0, 0, 3, 1)
    assert (done.health, done.lagging, done.dropped) == ("up", False, 0)


@pytest.mark.requirement("CRASH-RESTART")
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("way", ["gather", "race", "task_group"])
async def test_a_task_of_a_handler_that_exits_crashes_its_agent_and_not_the_program(
    way: str, kind: type[BaseException]
) -> None:
    app = loom.App("exits")
    seen: list[str] = []

    async def leaves(ctx: loom.Context) -> None:
        await ctx.sleep(1)
        raise kind

    async def stays() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def together(ctx: loom.Context) -> None:
        match way:
            case "gather":
                await ctx.gather(leaves(ctx), stays())
            case "race":
                await ctx.race(leaves(ctx), stays())
            case _:
                async with ctx.task_group() as group:
                    group.create_task(leaves(ctx))
                    group.create_task(stays())

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        try:
            await together(ctx)
        except kind:
            seen.append("raised")
            raise

    @app.agent("other", topics=["other"])
    async def other(ctx: loom.Context, event: loom.Event) -> str:
        return "at work"

    async with Harness(app) as h:
        await h.ctx.emit("job")
        await h.advance(1)
        assert h.stats()["runtime"]["agents"]["worker"]["crashes"] == 1
        assert (await h.ctx.request("other")).data == "at work"

    assert seen == ["cancelled", "raised"]


async def test_children_that_are_cancelled_before_they_begin_leave_no_warning() -> None:
    begun: list[str] = []

    async def child() -> None:
        begun.append("child")

    async with Harness(loom.App("early")) as h:
        async with h.ctx.task_group() as group:
            task = group.create_task(child(), name="named")
            task.cancel()
        with pytest.raises(TypeError, match="coroutine"):
            await h.ctx.race(3)  # type: ignore[arg-type]

    assert (task.get_name(), task.cancelled()) == ("named", True)

    assert begun == []


@pytest.mark.requirement("LANE-PARALLEL")
async def test_as_many_turns_run_side_by_side_as_the_agent_says() -> None:
    app = loom.App("wide")
    gate = asyncio.Event()
    begun = 0

    @app.agent("wide", topics=["job"], concurrency=600)
    async def wide(ctx: loom.Context, event: loom.Event[int]) -> None:
        nonlocal begun
        begun += 1
        await gate.wait()

    async with Harness(app, clock="system") as h:
        for n in range(700):
            await h.ctx.emit("job", n, key=str(n))
        await h.idle()
        side_by_side = begun
        gate.set()
        await h.idle()
    assert (side_by_side, begun) == (600, 700)


@pytest.mark.requirement("LANE-PARALLEL")
async def test_a_key_whose_handler_does_not_end_leaves_room_for_the_others() -> None:
    app = loom.App("stuck")
    gate = asyncio.Event()
    others: list[int] = []
    handled = 0

    @app.agent("wide", topics=["job"])
    async def wide(ctx: loom.Context, event: loom.Event[int]) -> None:
        nonlocal handled
        if event.key == "stuck":
            await gate.wait()
        else:
            others.append(event.data)
        handled += 1

    async with Harness(app) as h:
        for n in range(500):
            await h.ctx.emit("job", n, key="stuck")
        for n in range(10):
            await h.ctx.emit("job", n, key=f"k{n}")
        await h.idle()
        assert (sorted(others), handled) == (list(range(10)), 10)
        gate.set()
        await h.idle()
    assert handled == 510


@pytest.mark.requirement("LANE-PARALLEL")
@pytest.mark.in_process("runs a pool over a link of its own")
async def test_what_comes_while_the_last_worker_is_about_to_park_is_taken() -> None:
    app = loom.App("late")
    seen: asyncio.Queue[str] = asyncio.Queue()

    @app.agent("one", topics=["a.>"], concurrency=1)
    async def one(ctx: loom.Context, event: loom.Event[int]) -> None:
        seen.put_nowait(event.topic)

    async with running(app) as run:
        other, look = run.engine.attach("default", "other"), run.link.look

        def late() -> None:
            run.link.look = look
            other.session.emit(other.session.root, None, "a.second", b"2", 1)
            look()

        run.link.look = late  # the worker looks between finding nothing and parking
        await run.context.emit("a.first", 1)
        assert [await seen.get(), await seen.get()] == ["a.first", "a.second"]
        other.close()
