"""Listening to many, and what a majority is."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import loom
from loom.collab import Fanin, Partial, fanin
from loom.collab.partial import Poll, same_value
from loom.errors import DeadlineExceeded, Exhausted, InvalidParams, Unavailable
from loom.testing import Harness

pytestmark = pytest.mark.requirement("COLLAB-FANIN")


class Vote(BaseModel):
    choice: str


def voters(*choices: str) -> loom.App:
    """One agent for each choice, which votes a second after the one before it."""
    app = loom.App("voters")

    def add(index: int, choice: str) -> None:
        @app.agent(f"voter-{index}", topics=["poll"])
        async def voter(ctx: loom.Context, event: loom.Event) -> None:
            await ctx.sleep(index + 1)
            await ctx.emit(f"vote.{index}", {"choice": choice} if choice else "nothing")

    for index, choice in enumerate(choices):
        add(index, choice)
    return app


def choices(partial: Partial[loom.Event[Vote]]) -> list[str]:
    return [event.data.choice for event in partial.items]


async def test_what_is_published_in_the_block_is_heard_and_first_k_is_enough() -> None:
    async with Harness(voters("tea", "coffee", "tea")) as h:
        await h.ctx.emit("vote.early", Vote(choice="too early"))

        async def poll() -> Partial[loom.Event[Vote]]:
            async with fanin(h.ctx, ["vote.*"], timeout=10, returns=Vote) as heard:
                await h.ctx.emit("vote.now", Vote(choice="now"))
                await h.ctx.emit("poll")
                return await heard.first(2)

        asked = asyncio.create_task(poll())
        await h.advance(1)
        partial = await asked
        await h.idle()
        assert h.stats()["gauges"]["subscriptions"] == 4  # the voters and the harness
        await h.advance(10)

    assert choices(partial) == ["now", "tea"]
    assert (partial.missing, partial.timed_out) == (0, False)


async def test_time_that_is_up_gives_what_came_and_counts_what_did_not() -> None:
    async with Harness(voters("tea", "coffee", "tea")) as h:

        async def poll() -> list[Partial[loom.Event[Vote]]]:
            topics = ["vote.0", "vote.1", "vote.2"]
            async with fanin(h.ctx, topics, timeout=2.5, returns=Vote) as heard:
                await h.ctx.emit("poll")
                return [await heard.first(3), await heard.all(), await heard.first(2)]

        asked = asyncio.create_task(poll())
        await h.advance(2.5)
        first, every, enough = await asked
        await h.advance(10)

    for partial in (first, every):
        assert choices(partial) == ["tea", "coffee"]
        assert (partial.missing, partial.timed_out) == (1, True)
    assert (enough.missing, enough.timed_out) == (0, False)


async def test_all_waits_for_one_event_of_each_filter() -> None:
    async with (
        Harness(voters()) as h,
        fanin(h.ctx, ["a.*", "b.>", "a.x"], timeout=5) as heard,
    ):
        for topic in ("a.y", "a.z", "b.c.d", "c", "a.x"):
            await h.ctx.emit(topic)
        partial = await heard.all()

    assert [event.topic for event in partial.items] == ["a.y", "a.z", "b.c.d", "a.x"]
    assert not partial.timed_out


async def test_until_takes_any_condition() -> None:
    def three_cups(events: Sequence[loom.Event[int]]) -> bool:
        return sum(event.data for event in events) >= 3

    async with Harness(voters()) as h, fanin(h.ctx, ["cups"], timeout=5, returns=int) as heard:
        for cups in (1, 1, 1, 1):
            await h.ctx.emit("cups", cups)
        partial = await heard.until(three_cups)

    assert [event.data for event in partial.items] == [1, 1, 1]


async def test_any_gives_the_first_data_or_says_that_none_came() -> None:
    async with Harness(voters()) as h:
        async with fanin(h.ctx, ["vote.*"], timeout=5, returns=Vote) as heard:
            await h.ctx.emit("vote.x", Vote(choice="tea"))
            assert (await heard.any()).choice == "tea"

        async def nothing() -> None:
            async with fanin(h.ctx, ["vote.*"], timeout=5) as heard:
                await heard.any()

        asked = asyncio.create_task(nothing())
        await h.advance(5)
        with pytest.raises(DeadlineExceeded):
            await asked


async def majority(h: Harness, *, of: int, timeout: float = 60) -> Vote:
    async with fanin(h.ctx, ["vote.*"], timeout=timeout, returns=Vote) as heard:
        await h.ctx.emit("poll")
        return await heard.majority(of=of, key=lambda vote: vote.choice)


async def test_a_majority_ends_as_soon_as_it_is_one() -> None:
    async with Harness(voters("tea", "coffee", "tea", "tea", "coffee")) as h:
        asked = asyncio.create_task(majority(h, of=5))
        await h.advance(3.5)
        assert not asked.done()
        await h.advance(1)
        assert (await asked).choice == "tea"
        await h.advance(10)


@pytest.mark.requirement("COLLAB-EARLY")
async def test_a_majority_that_cannot_come_any_more_ends_at_once() -> None:
    async with Harness(voters("tea", "coffee", "water", "")) as h:
        asked = asyncio.create_task(majority(h, of=4))
        await h.advance(3)
        with pytest.raises(Unavailable):
            await asked
        await h.advance(10)


async def test_a_vote_that_does_not_fit_is_a_failure_and_spoilt() -> None:
    async with Harness(voters("", "tea", "tea")) as h:

        async def poll() -> tuple[str, Partial[loom.Event[Vote]]]:
            async with fanin(h.ctx, ["vote.>"], timeout=60, returns=Vote) as heard:
                await h.ctx.emit("poll")
                return (await heard.majority(of=3)).choice, await heard.first(2)

        asked = asyncio.create_task(poll())
        await h.advance(3)
        choice, partial = await asked

    assert choice == "tea"
    (failure,) = partial.failures
    assert (failure.target, failure.error.code) == ("default/voter-0", "INVALID_PARAMS")
    assert failure.error.who == "default/voter-0"


async def test_a_sender_votes_once() -> None:
    async with Harness(voters()) as h:

        async def poll() -> Vote:
            async with fanin(h.ctx, ["vote"], timeout=1, returns=Vote) as heard:
                for _ in range(3):
                    await h.ctx.emit("vote", Vote(choice="mine"))
                return await heard.majority(of=3)

        asked = asyncio.create_task(poll())
        await h.advance(1)
        with pytest.raises(DeadlineExceeded) as caught:
            await asked

    assert "1 of 3" in caught.value.message


async def test_a_handler_hears_its_own_thread_unless_it_says_otherwise() -> None:
    app = loom.App("threads")
    heard_by: dict[str, list[str]] = {}

    async def listen(ctx: loom.Context, heard: Fanin[str], name: str, k: int) -> None:
        partial = await heard.first(k)
        heard_by[name] = sorted(event.data for event in partial.items)

    @app.agent("ears", topics=["listen"])
    async def ears(ctx: loom.Context, event: loom.Event) -> None:
        async with (
            fanin(ctx, ["say"], timeout=5) as own,
            fanin(ctx, ["say"], timeout=5, thread="other") as other,
            fanin(ctx, ["say"], timeout=5, thread="*") as every,
        ):
            await ctx.emit("ready")
            await listen(ctx, own, "own", 1)
            await listen(ctx, other, "other", 1)
            await listen(ctx, every, "every", 3)

    async with Harness(app) as h:
        await h.ctx.emit("listen", thread="mine")
        await h.idle()
        for thread in ("third", "other", "mine"):
            await h.ctx.emit("say", thread, thread=thread)
        await h.idle()

    assert heard_by == {"own": ["mine"], "other": ["other"], "every": ["mine", "other", "third"]}


@pytest.mark.requirement("COLLAB-REFUSED")
async def test_more_events_than_it_keeps_is_an_error_that_names_the_limit() -> None:
    async with Harness(voters()) as h:

        async def never() -> None:
            async with fanin(h.ctx, ["drop"], timeout=60) as heard:
                await heard.until(lambda events: False)

        asked = asyncio.create_task(never())
        await h.idle()
        for _ in range(1_025):
            await h.ctx.emit("drop")
            await h.idle()
        with pytest.raises(Exhausted) as caught:
            await asked

    assert caught.value.limit == "fanin_events"


@pytest.mark.requirement("COLLAB-REFUSED")
@pytest.mark.parametrize(
    ("topics", "field"), [([], "topics"), ("vote", "topics"), (["a..b"], "topics")]
)
async def test_wrong_filters_are_refused(topics: list[str], field: str) -> None:
    async with Harness(voters()) as h:
        with pytest.raises(InvalidParams) as caught:
            async with fanin(h.ctx, topics, timeout=1):
                raise AssertionError("it was let in")
    assert caught.value.field == field


@pytest.mark.requirement("COLLAB-REFUSED")
async def test_a_majority_of_nobody_is_refused() -> None:
    async with Harness(voters()) as h, fanin(h.ctx, ["vote"], timeout=1) as heard:
        with pytest.raises(InvalidParams) as caught:
            await heard.majority(of=0)
    assert caught.value.field == "of"


async def test_who_listens_when_the_app_stops_is_told() -> None:
    app = loom.App("stops")
    listening: list[asyncio.Task[object]] = []

    async def listen(ctx: loom.Context) -> object:
        async with fanin(ctx, ["never"], timeout=60) as heard:
            return await heard.first(1)

    async with app.running() as ctx:
        listening.append(asyncio.create_task(listen(ctx)))
        await asyncio.sleep(0)
    with pytest.raises(loom.LoomError) as caught:
        await listening[0]
    assert caught.value.code == "CANCELLED"


@given(
    votes=st.lists(st.sampled_from(["a", "b", "c", None]), max_size=9),
    more=st.integers(0, 3),
)
def test_a_poll_says_what_a_count_of_all_votes_says(votes: list[str | None], more: int) -> None:
    of = len(votes) + more or 1
    poll = Poll(of)
    for index, vote in enumerate(votes, 1):
        if vote is None:
            poll.spoil()
        else:
            poll.vote(vote)
        cast = [v for v in votes[:index] if v is not None]
        counts = Counter(cast)
        agreed = {v for v, n in counts.items() if 2 * n > of}
        best = max(counts.values(), default=0) + of - index
        assert (None if poll.winner is None else {cast[poll.winner]}) == (agreed or None)
        assert poll.is_over == (bool(agreed) or 2 * best <= of)
    if poll.winner is not None:
        cast = [v for v in votes if v is not None]
        assert cast.index(cast[poll.winner]) == poll.winner


@given(st.dictionaries(st.text(), st.integers() | st.lists(st.booleans())))
def test_values_agree_whatever_the_order_of_their_keys(value: dict[str, object]) -> None:
    assert same_value(value) == same_value(dict(reversed(value.items())))
    assert same_value([value, 1]) != same_value([value, 2])
    assert same_value(b"x") != same_value("x")
