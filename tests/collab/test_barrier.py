"""Waiting until all have come."""

import asyncio
from typing import Any

import pytest

import loom
from loom.collab import Meeting, barrier
from loom.errors import Conflict, DeadlineExceeded, Exhausted, InvalidParams
from loom.limits import BARRIER_KEPT_SECONDS, BARRIER_WAITING, BARRIERS
from loom.testing import Harness

pytestmark = pytest.mark.requirement("COLLAB-BARRIER")


def meet(h: Harness, member: str, n: int = 3, **more: Any) -> "asyncio.Task[Meeting]":
    options: dict[str, Any] = {"timeout": 10.0, "thread": "trip", **more}
    return asyncio.create_task(barrier(h.ctx, "start", n, member=member, **options))


async def test_all_go_on_when_the_last_one_comes_and_see_the_same() -> None:
    async with Harness(loom.App("meet")) as h:
        waiting = [meet(h, "ada"), meet(h, "bob")]
        await h.advance(5)
        assert not any(task.done() for task in waiting)
        last = await meet(h, "eve")
        meetings = [await task for task in waiting]
        (coordinator,) = await h.ctx.agents()
        assert len(h.events("thread.trip.reply")) == 3  # who joined the thread sees it too

    names = ("default/meet/ada", "default/meet/bob", "default/meet/eve")
    assert last == Meeting(n=3, members=names, complete=True)
    assert meetings == [last, last]
    assert coordinator.name == "loom.barrier"
    assert coordinator.filters[0] == "thread.*.barrier.>"


async def test_it_ends_for_all_when_the_first_has_waited_enough_and_late_ones_see_it() -> None:
    async with Harness(loom.App("meet")) as h:
        patient = meet(h, "ada", timeout=60)
        await h.advance(1)
        hasty = meet(h, "bob", timeout=2)
        await h.advance(2)
        ended = await patient
        assert ended == await hasty
        late = await meet(h, "eve")
        await h.advance(BARRIER_KEPT_SECONDS - 1)
        later = await meet(h, "ada")

    assert ended == Meeting(n=3, members=("default/meet/ada", "default/meet/bob"), complete=False)
    assert (late, later) == (ended, ended)


async def test_an_outcome_is_forgotten_in_time() -> None:
    async with Harness(loom.App("meet")) as h:
        first = meet(h, "ada", timeout=1)
        await h.advance(1)
        assert (await first).members == ("default/meet/ada",)
        await h.advance(BARRIER_KEPT_SECONDS)
        second = meet(h, "bob", timeout=1)
        await h.advance(1)
        assert (await second).members == ("default/meet/bob",)


async def test_outcomes_are_forgotten_in_number() -> None:
    async with Harness(loom.App("meet")) as h:
        for number in range(BARRIERS + 1):
            await barrier(h.ctx, f"b{number}", 1, timeout=1, thread="t", member="ada")
        kept = await barrier(h.ctx, "b1", 1, timeout=1, thread="t", member="bob")
        forgotten = await barrier(h.ctx, "b0", 1, timeout=1, thread="t", member="bob")

    assert kept.members == ("default/meet/ada",)
    assert forgotten.members == ("default/meet/bob",)


async def test_who_comes_twice_counts_once() -> None:
    async with Harness(loom.App("meet")) as h:
        waiting = [meet(h, "ada", n=2), meet(h, "ada", n=2)]
        await h.advance(1)
        assert not any(task.done() for task in waiting)
        waiting.append(meet(h, "bob", n=2))
        meetings = await asyncio.gather(*waiting)

    assert {meeting.members for meeting in meetings} == {("default/meet/ada", "default/meet/bob")}


async def test_agents_meet_in_the_thread_of_their_turns() -> None:
    app = loom.App("crew")
    met: list[tuple[str, Meeting]] = []

    def add(name: str) -> None:
        @app.agent(name, topics=["go"])
        async def worker(ctx: loom.Context, event: loom.Event) -> None:
            meeting = await barrier(ctx, "ready", 3, timeout=5)
            met.append((ctx.agent, meeting))

    for name in ("ada", "bob", "eve"):
        add(name)
    async with Harness(app) as h:
        await h.ctx.emit("go", thread="one")
        await h.ctx.emit("go", thread="two")
        await h.idle()

    assert len(met) == 6
    assert len({meeting.members for _, meeting in met}) <= 2  # one order in each thread
    assert {tuple(sorted(meeting.members)) for _, meeting in met} == {
        ("default/ada", "default/bob", "default/eve")
    }


async def test_a_member_that_dies_is_missed_by_the_others_in_time() -> None:
    app = loom.App("crew")
    met: list[Meeting] = []

    def add(name: str) -> None:
        @app.agent(name, topics=["go"])
        async def worker(ctx: loom.Context, event: loom.Event) -> None:
            if name == "eve":
                raise RuntimeError("died on the way")
            met.append(await barrier(ctx, "ready", 3, timeout=5))

    for name in ("ada", "bob", "eve"):
        add(name)
    async with Harness(app) as h:
        await h.ctx.emit("go")
        await h.advance(5)

    assert met[0] == met[1]
    assert sorted(met[0].members) == ["default/ada", "default/bob"]
    assert (len(met), met[0].n, met[0].complete) == (2, 3, False)


@pytest.mark.requirement("COLLAB-REFUSED")
async def test_another_number_of_members_is_a_conflict() -> None:
    async with Harness(loom.App("meet")) as h:
        waiting = meet(h, "ada", n=2)
        await h.idle()
        with pytest.raises(Conflict) as caught:
            await meet(h, "bob", n=3)
        assert (await meet(h, "bob", n=2)).complete
        with pytest.raises(Conflict):
            await meet(h, "eve", n=3)  # it is over, and still one of 2
        assert (await waiting).complete

    assert (caught.value.field, caught.value.hint is not None) == ("n", True)


@pytest.mark.requirement("COLLAB-REFUSED")
@pytest.mark.parametrize(
    ("name", "more", "field", "limit"),
    [
        ("Start", {}, "name", None),
        ("start.*", {}, "name", None),
        ("start", {"n": 0}, "n", "barrier_members"),
        ("start", {"n": 257}, "n", "barrier_members"),
        ("start", {"timeout": 0}, "timeout", "timeout_ms_max"),
        ("start", {"member": ""}, "member", None),
        ("start", {"thread": None}, "thread", None),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    name: str, more: dict[str, Any], field: str, limit: str | None
) -> None:
    options: dict[str, Any] = {"n": 2, "timeout": 1, "thread": "t", **more}
    async with Harness(loom.App("meet")) as h:
        with pytest.raises(InvalidParams) as caught:
            await barrier(h.ctx, name, **options)
        assert await h.ctx.agents() == []
    assert (caught.value.field, caught.value.limit) == (field, limit)


@pytest.mark.requirement("COLLAB-REFUSED")
async def test_more_who_wait_than_there_is_room_for_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = 100  # what can be under way over a link is less than the real one
    monkeypatch.setattr("loom.collab.coordinator.BARRIER_WAITING", room)
    async with Harness(loom.App("meet")) as h:

        def come(number: int, n: int) -> "asyncio.Task[Meeting]":
            return asyncio.create_task(
                barrier(h.ctx, f"b{number}", n, timeout=5, thread="t", member="ada")
            )

        waiting = [come(number, 2) for number in range(room)]
        await h.idle()
        with pytest.raises(Exhausted) as caught:
            await come(room, 2)
        alone = await come(room, 1)
        await h.advance(5)
        assert not any(meeting.complete for meeting in await asyncio.gather(*waiting))
        again = come(room + 1, 2)  # there is room again
        await h.advance(5)
        assert not (await again).complete

    assert caught.value.limit == "barrier_waiting"
    assert alone.complete


@pytest.mark.requirement("COLLAB-REFUSED")
async def test_an_arrival_that_is_no_request_or_no_arrival_is_refused() -> None:
    arrival = {"v": 1, "n": 2, "member": None, "timeout_ms": 1000}
    async with Harness(loom.App("meet")) as h:
        await barrier(h.ctx, "other", 1, timeout=1, thread="t")
        await h.ctx.emit("thread.t.barrier.start", arrival)
        await h.idle()
        (told,) = h.events("loom.error.invalid_params")
        wrong = ({"v": 2}, {"n": 0}, {"n": "2"}, {"extra": 1}, {"timeout_ms": 0}, {"member": ""})
        for change in wrong:
            with pytest.raises(InvalidParams):
                await h.ctx.request("thread.t.barrier.start", {**arrival, **change})
        with pytest.raises(InvalidParams):
            await h.ctx.request("thread.t.barrier.start", {"n": 2})

    assert told.data["field"] == "topic"


async def test_a_turn_that_has_less_time_ends_the_barrier_for_all() -> None:
    app = loom.App("crew")

    @app.agent("hasty", topics=["go"])
    async def hasty(ctx: loom.Context, event: loom.Event) -> None:
        await barrier(ctx, "ready", 3, timeout=60, thread="t")

    async with Harness(app) as h:
        asked = asyncio.create_task(h.ctx.request("go", timeout=1))
        await h.idle()
        patient = asyncio.create_task(barrier(h.ctx, "ready", 3, timeout=60, thread="t"))
        await h.advance(1)
        with pytest.raises(DeadlineExceeded):
            await asked
        meeting = await patient

    assert meeting == Meeting(n=3, members=("default/hasty", "default/crew"), complete=False)


async def test_agents_that_finish_their_work_while_the_app_stops_can_still_meet() -> None:
    app = loom.App("crew")
    met: list[bool] = []

    async def worker(ctx: loom.Context, event: loom.Event) -> None:
        met.append((await barrier(ctx, "ready", 2, timeout=5)).complete)

    app.agent("ada", topics=["go"])(worker)
    app.agent("bob", topics=["go"])(worker)
    async with app.running() as ctx:
        await ctx.emit("go")

    assert met == [True, True]


async def test_no_coordinator_starts_in_an_app_that_is_being_closed() -> None:
    app = loom.App("crew")
    codes: list[str] = []

    @app.agent("ada", topics=["go"])
    class Ada(loom.Agent):
        @loom.on("go")
        async def go(self, ctx: loom.Context, event: loom.Event) -> None: ...

        async def on_stop(self, ctx: loom.Context) -> None:
            try:
                await barrier(ctx, "ready", 2, timeout=5, thread="t")
            except loom.LoomError as error:
                codes.append(error.code)

    async with app.running():
        pass

    assert codes == ["CANCELLED"]


async def test_a_coordinator_that_crashes_ends_those_who_wait_and_starts_again() -> None:
    async with Harness(loom.App("meet")) as h:
        waiting = meet(h, "ada")
        await h.advance(1)
        h.crash("loom.barrier")
        with pytest.raises(loom.LoomError):
            await meet(h, "bob")
        await h.advance(5)
        with pytest.raises(loom.LoomError):
            await waiting
        assert (await meet(h, "eve", n=1)).complete


@pytest.mark.requirement("COLLAB-NO-LEAK")
@pytest.mark.in_process("as many wait as can be under way over a link at best")
async def test_members_that_are_cancelled_make_room_for_others_at_once() -> None:
    async with Harness(loom.App("meet")) as h:
        for _ in range(2):
            waiting = [
                asyncio.create_task(barrier(h.ctx, f"b{i}", 2, timeout=3600, thread="t"))
                for i in range(BARRIER_WAITING)
            ]
            await h.idle()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await h.idle()
        assert h.stats()["gauges"]["leased"] == 0
        fresh = meet(h, "ada", n=2)
        await h.idle()
        assert (await meet(h, "bob", n=2)).complete
        assert (await fresh).complete


@pytest.mark.requirement("COLLAB-NO-LEAK")
async def test_a_member_that_is_cancelled_has_come_until_its_time_is_up() -> None:
    async with Harness(loom.App("meet")) as h:
        gone = meet(h, "ada", n=2, timeout=10)
        await h.idle()
        gone.cancel()
        await h.advance(9)
        both = await meet(h, "bob", n=2)

        alone = meet(h, "ada", n=2, timeout=10, thread="other")
        await h.idle()
        alone.cancel()
        await h.advance(11)
        late = await meet(h, "bob", n=2, thread="other")
        await h.advance(BARRIER_KEPT_SECONDS - 0.5)
        again = meet(h, "eve", n=2, timeout=1, thread="other")  # the old one is forgotten
        await h.advance(1)

        assert both.members == ("default/meet/ada", "default/meet/bob")
        assert (late.members, late.complete) == (("default/meet/ada",), False)
        assert (await again).members == ("default/meet/eve",)


async def test_the_time_of_a_member_that_is_cancelled_counts_no_more_while_others_wait() -> None:
    async with Harness(loom.App("meet")) as h:
        hasty, patient = meet(h, "ada", timeout=2), meet(h, "bob", timeout=60)
        await h.advance(1)
        hasty.cancel()
        await h.advance(30)
        assert not patient.done()
        await h.advance(30)
        assert (await patient).members == ("default/meet/ada", "default/meet/bob")


@pytest.mark.requirement("COLLAB-NO-LEAK")
async def test_a_member_that_is_cancelled_on_its_way_waits_at_no_barrier() -> None:
    async with Harness(loom.App("meet")) as h:
        await meet(h, "first", n=1, thread="other")
        gone = barrier(h.ctx, "start", 2, timeout=3600, thread="trip", member="ada")
        gone.send(None)  # it has asked, and the coordinator has not run
        with pytest.raises(asyncio.CancelledError):
            gone.throw(asyncio.CancelledError())
        await h.idle()
        assert h.stats()["gauges"]["leased"] == 0
        assert (await meet(h, "bob", n=2)).members == ("default/meet/ada", "default/meet/bob")


async def test_of_barriers_where_nobody_waits_the_oldest_end_before_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    barriers = 16
    monkeypatch.setattr("loom.collab.coordinator.BARRIERS", barriers)
    async with Harness(loom.App("meet")) as h:
        for number in range(barriers + 1):
            gone = meet(h, "ada", n=2, timeout=3600, thread=f"t{number}")
            await h.idle()
            gone.cancel()
            await h.idle()
        first = await meet(h, "bob", n=2, thread="t0")
        second = await meet(h, "bob", n=2, thread="t1")

    assert (first.complete, second.complete) == (False, True)


@pytest.mark.requirement("STOP-GRACEFUL")
async def test_a_member_that_is_cancelled_holds_up_no_stop() -> None:
    app = loom.App("meet")
    async with asyncio.timeout(5):
        async with app.running() as ctx, ctx.watch("thread.t.barrier.>") as arrivals:
            gone = asyncio.create_task(barrier(ctx, "start", 2, timeout=3600, thread="t"))
            await anext(arrivals)
            gone.cancel()
