"""Asking many side by side."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

import loom
from loom.collab import Item, Partial, Target, fanout
from loom.errors import DeadlineExceeded, InvalidParams, Unavailable
from loom.testing import Harness

pytestmark = pytest.mark.requirement("COLLAB-FANOUT")


class Report(BaseModel):
    place: str
    rain: bool


async def guessed(place: str) -> Report:
    return Report(place=place, rain=False)


def stations() -> loom.App:
    app = loom.App("stations")

    @app.agent("north", topics=["weather.north"])
    async def north(ctx: loom.Context, event: loom.Event) -> Report:
        await ctx.sleep(1)
        return Report(place="north", rain=True)

    @app.agent("south", topics=["weather.south"])
    async def south(ctx: loom.Context, event: loom.Event) -> Report:
        await ctx.sleep(2)
        return Report(place="south", rain=True)

    @app.agent("sea", topics=["weather.sea"])
    async def sea(ctx: loom.Context, event: loom.Event) -> Report:
        await ctx.sleep(3)
        return Report(place="sea", rain=False)

    @app.agent("broken", topics=["weather.broken"])
    async def broken(ctx: loom.Context, event: loom.Event) -> Report:
        raise OSError("no signal")

    @app.agent("silent", topics=["weather.silent"])
    async def silent(ctx: loom.Context, event: loom.Event) -> None:
        await ctx.sleep(3600)

    app.capability("weather.guess", effect="pure")(guessed)

    @app.capability("weather.dance", effect="unsafe")
    async def dance(place: str) -> str:
        await asyncio.get_running_loop().create_future()
        return place

    return app


def places(partial: Partial[Item[Report]]) -> list[str]:
    return [item.data.place for item in partial.items]


def errors(partial: Partial[Item[Report]]) -> list[tuple[str, str]]:
    return [(failure.target, failure.error.code) for failure in partial.failures]


TOPICS = ["weather.north", "weather.south", "weather.sea"]


async def test_all_gives_answers_failures_and_what_is_missing_at_one_deadline() -> None:
    async with Harness(stations()) as h:

        async def ask() -> Partial[Item[Report]]:
            targets = [*TOPICS, "weather.broken", "weather.silent", "weather.nowhere"]
            async with fanout(h.ctx, targets, timeout=2.5, returns=Report) as group:
                return await group.all()

        asked = asyncio.create_task(ask())
        await h.advance(2.4)
        assert not asked.done()
        await h.advance(0.2)
        partial = await asked
        await h.advance(3600)

    assert places(partial) == ["north", "south"]
    assert errors(partial) == [
        ("weather.nowhere", "UNAVAILABLE"),
        ("weather.broken", "HANDLER_ERROR"),
    ]
    assert [failure.index for failure in partial.failures] == [5, 3]
    assert (partial.missing, partial.timed_out) == (2, True)


async def test_first_k_returns_when_k_have_answered_and_leaving_cancels_the_rest() -> None:
    async with Harness(stations()) as h:
        counts: list[int] = []

        async def ask() -> list[Partial[Item[Report]]]:
            async with fanout(h.ctx, TOPICS, timeout=60, returns=Report) as group:
                early = await group.first(1)
                later = await group.first(2)
                counts.append(h.stats()["requests"]["pending"])
            return [early, later]

        asked = asyncio.create_task(ask())
        await h.advance(2)
        early, later = await asked
        await h.idle()
        counts.append(h.stats()["requests"]["pending"])
        assert h.stats()["requests"]["cancelled"] == 1
        await h.advance(10)

    assert places(early) == ["north"]
    assert places(later) == ["north", "south"]
    assert (later.missing, later.timed_out) == (1, False)
    assert counts == [1, 0]


async def test_any_gives_the_first_answer() -> None:
    async with Harness(stations()) as h:

        async def ask() -> Report:
            async with fanout(h.ctx, TOPICS[::-1], timeout=60, returns=Report) as group:
                return await group.any()

        asked = asyncio.create_task(ask())
        await h.advance(1)
        assert (await asked).place == "north"
        await h.advance(10)


async def test_majority_is_of_all_targets_by_key() -> None:
    async with Harness(stations()) as h:

        async def ask() -> Report:
            async with fanout(h.ctx, TOPICS, timeout=60, returns=Report) as group:
                return await group.majority(key=lambda report: report.rain)

        asked = asyncio.create_task(ask())
        await h.advance(1.9)
        assert not asked.done()
        await h.advance(0.2)
        assert (await asked).place == "north"
        await h.advance(10)


@pytest.mark.requirement("COLLAB-EARLY")
async def test_what_cannot_come_any_more_ends_at_once() -> None:
    lost = ["weather.broken", "weather.nowhere", "weather.silent"]
    async with Harness(stations()) as h:
        async with fanout(h.ctx, lost, timeout=60) as group:
            partial = await group.first(2)
            with pytest.raises(Unavailable) as caught:
                await group.majority()
        async with fanout(h.ctx, lost[:2], timeout=60) as group:
            with pytest.raises(Unavailable) as none:
                await group.any()
        await h.advance(3600)

    assert (partial.items, partial.missing, partial.timed_out) == ([], 1, False)
    assert "0 of 3" in caught.value.message
    assert none.value.hint == "weather.nowhere: UNAVAILABLE, weather.broken: HANDLER_ERROR"


async def test_any_and_majority_raise_when_time_is_up() -> None:
    async with Harness(stations()) as h:

        async def ask(which: str) -> None:
            async with fanout(h.ctx, ["weather.silent", "weather.south"], timeout=1) as group:
                await (group.any() if which == "any" else group.majority())

        for which in ("any", "majority"):
            asked = asyncio.create_task(ask(which))
            await h.advance(1)
            with pytest.raises(DeadlineExceeded):
                await asked
        await h.advance(3600)


async def test_capabilities_are_called_with_their_own_arguments() -> None:
    app = stations()
    guess = app.capabilities[0]
    async with Harness(app) as h:
        targets: list[Target] = [
            guess.bind(place="here"),
            ("weather.guess", {"place": "there"}),
            ("weather.guess", {"plaice": "there"}),
            ("weather.gues", {}),
        ]
        async with fanout(h.ctx, targets, timeout=5, returns=Report) as group:
            partial = await group.all()

    assert sorted(places(partial)) == ["here", "there"]
    assert errors(partial) == [("weather.gues", "NOT_FOUND"), ("weather.guess", "INVALID_PARAMS")]


async def test_a_call_that_may_have_done_something_is_a_failure_and_not_missing() -> None:
    async with Harness(stations()) as h:

        async def ask() -> Partial[Item[Report]]:
            dances: list[Target] = [("weather.dance", {"place": "hill"})]
            async with fanout(h.ctx, dances, timeout=1) as group:
                return await group.all()

        asked = asyncio.create_task(ask())
        await h.advance(1)
        partial = await asked

    assert errors(partial) == [("weather.dance", "INDETERMINATE")]
    assert (partial.missing, partial.timed_out) == (0, True)


async def test_an_answer_of_another_type_is_a_failure() -> None:
    async with (
        Harness(stations()) as h,
        fanout(h.ctx, [("weather.guess", {"place": "x"})], timeout=5, returns=int) as group,
    ):
        partial = await group.all()

    assert [failure.error.code for failure in partial.failures] == ["CAPABILITY_ERROR"]


async def test_leaving_by_an_error_raises_that_error_and_leaves_nothing_behind() -> None:
    async with Harness(stations()) as h:

        async def leave() -> None:
            async with fanout(h.ctx, TOPICS, timeout=60):
                await h.idle()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await leave()
        await h.idle()
        assert h.stats()["requests"]["pending"] == 0
        assert h.stats()["requests"]["cancelled"] == 3
        await h.advance(10)


@pytest.mark.in_process("elsewhere the end of a turn is told in real time: see the test after it")
@pytest.mark.parametrize("on_its_way", [0.0, 0.05])
async def test_a_turn_that_has_less_time_ends_its_fanout_with_it(
    on_its_way: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stations()
    seen: list[Partial[Item[Report]]] = []
    told = loom.Context[Any].deadline.fget
    assert told is not None

    def late(ctx: loom.Context[Any]) -> float | None:
        """As a client tells the end of a turn that came late: the node ends it before."""
        deadline: float | None = told(ctx)
        return None if deadline is None else deadline + on_its_way

    monkeypatch.setattr(loom.Context, "deadline", property(late))

    @app.agent("desk", topics=["desk"])
    async def desk(ctx: loom.Context, event: loom.Event) -> None:
        async with fanout(ctx, TOPICS, timeout=60, returns=Report) as group:
            seen.append(await group.all())

    async with Harness(app) as h:
        asked = asyncio.create_task(h.ctx.request("desk", timeout=1.5))
        await h.advance(1.5)
        with pytest.raises(DeadlineExceeded):
            await asked
        await h.advance(10)

    assert places(seen[0]) == ["north"]
    assert (seen[0].missing, seen[0].timed_out) == (2, True)


async def test_a_turn_knows_what_time_it_has_and_its_fanout_keeps_to_it() -> None:
    app = loom.App("stations")
    seen: list[Partial[Item[Any]]] = []
    left: list[float] = []
    done = asyncio.Event()

    @app.agent("north", topics=["weather.north"])
    async def north(ctx: loom.Context, event: loom.Event) -> str:
        return "rain"

    @app.agent("south", topics=["weather.south"])
    async def south(ctx: loom.Context, event: loom.Event) -> None:
        await done.wait()

    @app.agent("desk", topics=["desk"])
    async def desk(ctx: loom.Context, event: loom.Event) -> None:
        assert ctx.deadline is not None
        left.append(ctx.deadline - ctx.monotonic())
        async with fanout(ctx, ["weather.north", "weather.south"], timeout=60) as group:
            seen.append(await group.all())
        done.set()

    async with Harness(app, clock="system") as h:
        with pytest.raises(DeadlineExceeded):
            await h.ctx.request("desk", timeout=0.5)
        async with asyncio.timeout(5):
            await done.wait()

    assert 0 < left[0] <= 0.5
    assert [item.data for item in seen[0].items] == ["rain"]
    assert (seen[0].missing, seen[0].timed_out) == (1, True)


@pytest.mark.requirement("COLLAB-REFUSED")
@pytest.mark.parametrize(
    ("targets", "data", "timeout", "field", "limit"),
    [
        ([], None, 1, "targets", None),
        ("weather.north", None, 1, "targets", None),
        (["a"] * 1_025, None, 1, "targets", "fanout_targets"),
        ([3], None, 1, "targets", None),
        ([("name",)], None, 1, "targets", None),
        ([("name", "text")], None, 1, "targets", None),
        (["a"], float("nan"), 1, "data", None),
        (["a"], None, 0, "timeout", "timeout_ms_max"),
        (["a"], None, "1", "timeout", None),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    targets: list[Target], data: object, timeout: float, field: str, limit: str | None
) -> None:
    async with Harness(stations()) as h:
        with pytest.raises(InvalidParams) as caught:
            async with fanout(h.ctx, targets, data, timeout=timeout):
                raise AssertionError("it was let in")
        assert h.stats()["requests"]["started"] == 0
    assert (caught.value.field, caught.value.limit) == (field, limit)
    assert caught.value.hint or field == "data"


async def test_first_k_of_fewer_targets_is_refused() -> None:
    async with Harness(stations()) as h, fanout(h.ctx, ["weather.sea"], timeout=1) as group:
        for k in (0, 2):
            with pytest.raises(InvalidParams) as caught:
                await group.first(k)
            assert caught.value.field == "k"
        await h.advance(10)


async def bewildered(ctx: loom.Context, item: Any, following: Any) -> Any:
    """Middleware that does to a call what its argument says."""
    if not isinstance(item, loom.Call):
        return await following(item)
    match item.args["place"]:
        case "cancels":
            raise asyncio.CancelledError
        case "hangs":
            await asyncio.get_running_loop().create_future()
        case "breaks":
            return await following(replace(item, args=Unreadable()))
        case "exits":
            raise SystemExit
        case _:
            return await following(item)


class Unreadable(Mapping[str, Any]):
    """Arguments that cannot be read."""

    def __iter__(self) -> Iterator[str]:
        raise OSError("the disk is gone")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> Any:
        raise OSError("the disk is gone")


@pytest.mark.requirement("COLLAB-NO-LEAK")
async def test_however_a_target_ends_the_group_is_told_and_waits_no_longer_than_its_time() -> None:
    app = loom.App("stations", middleware=[bewildered])
    app.capability("weather.guess", effect="pure")(guessed)
    targets: list[Target] = [
        ("weather.guess", {"place": place}) for place in ("cancels", "hangs", "breaks", "fine")
    ]
    async with Harness(app) as h:

        async def ask() -> tuple[Partial[Item[Report]], str]:
            async with fanout(h.ctx, targets, timeout=2, returns=Report) as group:
                partial = await group.all()
                with pytest.raises(DeadlineExceeded) as caught:
                    await group.majority()
                return partial, caught.value.message

        asked = asyncio.create_task(ask())
        await h.advance(1.9)
        assert not asked.done()
        await h.advance(0.5)
        partial, message = await asked

    assert places(partial) == ["fine"]
    assert [(failure.index, failure.error.code) for failure in partial.failures] == [
        (0, "CANCELLED"),
        (2, "HANDLER_ERROR"),
    ]
    assert "OSError" in partial.failures[1].error.message
    assert (partial.missing, partial.timed_out) == (1, True)
    assert message == "at most 1 of 4 agree in time"


async def test_a_target_that_exits_is_an_exit_of_who_asked() -> None:
    app = loom.App("stations", middleware=[bewildered])
    app.capability("weather.guess", effect="pure")(guessed)
    exits: list[Target] = [("weather.guess", {"place": "exits"})]
    async with Harness(app) as h:
        with pytest.raises(SystemExit):
            async with fanout(h.ctx, exits, timeout=2) as group:
                await group.all()


async def test_after_its_block_a_fanout_waits_for_nothing_and_gives_what_there_was() -> None:
    async with Harness(stations()) as h:
        async with fanout(h.ctx, ["weather.north", "weather.nowhere"], timeout=60) as group:
            await h.idle()
        async with asyncio.timeout(5):
            partial = await group.all()
            assert await group.first(1) == partial
            for way in (group.any, group.majority):
                with pytest.raises(Unavailable):
                    await way()
        await h.advance(10)

    assert errors(partial) == [("weather.nowhere", "UNAVAILABLE")]
    assert (partial.items, partial.missing, partial.timed_out) == ([], 1, False)
