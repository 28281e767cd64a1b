"""Giving a task to the best bidder."""

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

import loom
from loom.codec import encode
from loom.collab import Award, Bid, Contractor, Proposal, contract, contract_net
from loom.errors import (
    DeadlineExceeded,
    InvalidParams,
    NotSupported,
    Unavailable,
)
from loom.limits import CONTRACTS_OPEN
from loom.testing import Harness

pytestmark = pytest.mark.requirement("COLLAB-CONTRACT")


class Fence(BaseModel):
    metres: int


class Painted(BaseModel):
    by: str
    metres: int


class Painter(Contractor[Fence]):
    """Bids ``score``, works a second, and keeps what happened to it."""

    score: float | Proposal | None = 1.0

    happened: list[str]
    made: "Painter"

    def __init__(self) -> None:
        type(self).made = self

    async def bid(self, ctx: loom.Context, task: Fence) -> float | Proposal | None:
        return self.score

    async def execute(self, ctx: loom.Context, task: Fence) -> Any:
        self.happened.append("began")
        try:
            await self.work(ctx)
        except asyncio.CancelledError:
            self.happened.append("cancelled")
            raise
        return Painted(by=ctx.agent, metres=task.metres)

    async def work(self, ctx: loom.Context) -> None:
        await ctx.sleep(1)

    async def lost(self, ctx: loom.Context, task: Fence) -> None:
        self.happened.append(f"lost {task.metres}")


class Market:
    """An app of painters."""

    def __init__(self) -> None:
        self.app = loom.App("market")
        self.painters: dict[str, type[Painter]] = {}

    def add(self, name: str, score: float | Proposal | None, kind: type[Painter] = Painter) -> None:
        painter = type(name, (kind,), {"score": score, "happened": []})
        self.painters[name] = self.app.agent(name, topics=["job.paint"])(painter)


def paint(h: Harness, **more: Any) -> "asyncio.Task[Award[Painted]]":
    options: dict[str, Any] = {"bid_timeout": 2, "timeout": 30, "topic": "job.paint", **more}
    return asyncio.create_task(
        contract_net(h.ctx, Fence(metres=7), returns=Painted, **options), name="manager"
    )


class Fails(Painter):
    async def work(self, ctx: loom.Context) -> None:
        self.happened.append("failed")
        raise OSError("out of paint")


class Refuses(Painter):
    async def work(self, ctx: loom.Context) -> None:
        raise NotSupported("not in the rain")


class Hangs(Painter):
    async def work(self, ctx: loom.Context) -> None:
        await ctx.sleep(3600)


class Babbles(Painter):
    async def execute(self, ctx: loom.Context, task: Fence) -> Any:
        return {"by": "me", "metres": "all of it"}


async def test_the_best_bid_wins_and_the_others_are_told() -> None:
    market = Market()
    market.add("ada", 1.0)
    market.add("bob", 3.0)
    market.add("eve", 2.0)
    market.add("lazy", None)
    async with Harness(market.app) as h:
        asked = paint(h)
        await h.advance(1)
        award = await asked
        await h.idle()
        assert h.events("loom.dropped.>") == []

    assert award.winner == "default/bob"
    assert award.result == Painted(by="bob", metres=7)
    assert [bid.sender for bid in award.bids] == ["default/bob", "default/eve", "default/ada"]
    assert [(no.sender, no.code) for no in award.declined] == [("default/lazy", "UNAVAILABLE")]
    assert (award.reawards, award.failures) == (0, [])
    happened = {name: painter.happened for name, painter in market.painters.items()}
    assert happened == {"ada": ["lost 7"], "bob": ["began"], "eve": ["lost 7"], "lazy": []}


async def test_score_may_weigh_what_is_offered_and_the_first_of_equals_wins() -> None:
    market = Market()
    market.add("ada", Proposal(score=9.0, offer={"price": 30}))
    market.add("bob", Proposal(score=1.0, offer={"price": 20}))
    market.add("eve", Proposal(score=5.0, offer={"price": 20}))

    def cheapest(bid: Bid) -> float:
        return -float(bid.offer["price"])

    async with Harness(market.app) as h:
        asked = paint(h, score=cheapest)
        await h.advance(1)
        award = await asked

    assert award.winner == "default/bob"


@pytest.mark.requirement("COLLAB-REAWARD")
@pytest.mark.parametrize(
    ("kind", "code", "seconds"),
    [
        (Fails, "HANDLER_ERROR", 1),
        (Refuses, "NOT_SUPPORTED", 1),
        (Babbles, "INVALID_PARAMS", 1),
        (Hangs, "TIMEOUT", 6),
    ],
)
async def test_a_winner_that_fails_loses_it_to_the_next_best(
    kind: type[Painter], code: str, seconds: float
) -> None:
    market = Market()
    market.add("ada", 1.0)
    market.add("bob", 3.0, kind)
    async with Harness(market.app) as h:
        asked = paint(h, work_timeout=5)
        await h.advance(seconds)
        award = await asked
        await h.idle()

    assert award.winner == "default/ada"
    assert award.reawards == 1
    (failure,) = award.failures
    assert (failure.target, failure.error.code, failure.index) == ("default/bob", code, 0)


@pytest.mark.requirement("COLLAB-REAWARD")
async def test_time_is_shared_among_those_who_bid_unless_it_is_given() -> None:
    market = Market()
    for name, score in (("ada", 1.0), ("bob", 2.0), ("eve", 3.0)):
        market.add(name, score, Painter if name == "ada" else Hangs)
    async with Harness(market.app) as h:
        asked = paint(h, timeout=9)
        await h.advance(3.5)
        assert market.painters["eve"].happened == ["began", "cancelled"]
        assert market.painters["bob"].happened == ["began"]
        await h.advance(4)
        award = await asked

    assert (award.winner, award.reawards) == ("default/ada", 2)


def remote(h: Harness, name: str) -> tuple[Any, int]:
    """A contractor in another session, of the engine that the app runs at: its link and handle."""
    engine = vars(h)["_run"].engine
    link = getattr(engine, "node", engine).attach("default", "elsewhere")
    info = {"name": name, "filters": ["job.paint"], "group": name, "concurrency": 1}
    handle = link.session.register(name, ["job.paint"], name, 1, encode(info), False)
    return link, handle


def take_and_bid(link: Any, handle: int, score: float) -> None:
    cfp = link.session.take(handle, None)
    payload = encode({"v": 1, "score": score, "offer": None})
    link.session.offer(handle, cfp, f"thread.{cfp.thread_id}.bid", payload, 1, None)
    link.session.take(handle, cfp)


@pytest.mark.requirement("COLLAB-REAWARD")
async def test_a_winner_whose_session_closes_loses_it_at_once() -> None:
    market = Market()
    market.add("ada", 1.0)
    async with Harness(market.app) as h:
        link, handle = remote(h, "bob")
        asked = paint(h)
        await h.idle()
        take_and_bid(link, handle, 9)
        await h.idle()
        assert h.events("thread.*.award")[0].data["winner"] == "default/bob"
        link.close()
        await h.advance(1)
        award = await asked

    assert (award.winner, award.failures[0].error.code) == ("default/ada", "UNAVAILABLE")


@pytest.mark.requirement("COLLAB-REAWARD")
async def test_a_bidder_whose_session_closes_before_the_award_is_passed_over() -> None:
    market = Market()
    market.add("ada", 1.0)
    slow = Ghost(market.app)
    async with Harness(market.app) as h:
        link, handle = remote(h, "bob")
        asked = paint(h)
        await h.idle()
        take_and_bid(link, handle, 9)
        await h.idle()
        link.close()
        await slow.say("decline", award=None, code="UNAVAILABLE", message="")
        await h.advance(1)
        award = await asked
        winners = [event.data["winner"] for event in h.events("thread.*.award")]
        slow.stay.set()

    assert (award.winner, award.reawards) == ("default/ada", 0)
    assert [(failure.target, failure.index) for failure in award.failures] == [("default/bob", 0)]
    assert winners == ["default/ada", None]


@pytest.mark.requirement("COLLAB-REAWARD")
@pytest.mark.parametrize("at", ["thread.*.award", "job.paint"])
async def test_a_contractor_that_crashes_costs_no_time(at: str) -> None:
    market = Market()
    market.add("ada", 1.0)
    market.add("bob", 3.0)
    async with Harness(market.app) as h:
        h.crash("bob", at=at)
        asked = paint(h)
        await h.advance(1)
        award = await asked
        await h.advance(60)  # bob has started again
        asked = paint(h)
        await h.advance(1)
        again = await asked

    crashed = [] if at == "job.paint" else [("default/bob", "UNAVAILABLE")]
    assert award.winner == "default/ada"
    assert [(failure.target, failure.error.code) for failure in award.failures] == crashed
    assert again.winner == "default/bob"


@pytest.mark.requirement("COLLAB-REAWARD")
async def test_one_that_starts_again_while_bids_are_taken_can_still_bid() -> None:
    market = Market()
    market.add("ada", 1.0)
    slow = Ghost(market.app)
    async with Harness(market.app) as h:
        link, handle = remote(h, "bob")
        asked = paint(h)
        await h.idle()
        link.session.set_state(handle, 1)  # it restarts, with the call in its queue
        await h.idle()
        link.session.set_state(handle, 0)
        take_and_bid(link, handle, 9)
        await slow.say("decline", award=None, code="UNAVAILABLE", message="")
        await h.idle()
        assert [event.data["winner"] for event in h.events("thread.*.award")] == ["default/bob"]
        link.session.set_state(handle, 2)  # and this time it does not come back
        await h.advance(1)
        assert (await asked).winner == "default/ada"
        slow.stay.set()
        link.close()


async def test_who_was_called_and_left_is_not_waited_for() -> None:
    market = Market()
    market.add("ada", 1.0)
    async with Harness(market.app) as h:
        link, _ = remote(h, "bob")
        asked = paint(h)
        await h.idle()
        assert market.painters["ada"].happened == []
        link.close()
        await h.idle()
        assert market.painters["ada"].happened == ["began"]
        await h.advance(1)
        assert (await asked).winner == "default/ada"


@pytest.mark.requirement("COLLAB-REAWARD")
async def test_when_all_have_failed_it_says_so() -> None:
    market = Market()
    market.add("ada", 1.0, Fails)
    market.add("bob", 3.0, Refuses)
    async with Harness(market.app) as h:
        with pytest.raises(Unavailable) as caught:
            await paint(h)

    assert caught.value.hint == "default/bob: NOT_SUPPORTED, default/ada: HANDLER_ERROR"


async def test_the_overall_deadline_ends_it() -> None:
    market = Market()
    market.add("ada", 1.0, Hangs)
    async with Harness(market.app) as h:
        asked = paint(h, timeout=4)
        await h.advance(4)
        with pytest.raises(DeadlineExceeded):
            await asked
        await h.idle()

    assert market.painters["ada"].happened == ["began", "cancelled"]


@pytest.mark.requirement("COLLAB-EARLY")
async def test_nobody_who_hears_or_bids_is_unavailable_with_a_way_out() -> None:
    market = Market()
    async with Harness(market.app) as h:
        with pytest.raises(Unavailable) as unheard:
            await paint(h)
    market.add("ada", None)
    async with Harness(market.app) as h:
        with pytest.raises(Unavailable) as unwanted:
            await paint(h)  # at once: all who heard it have declined

    assert "Contractor" in (unheard.value.hint or "")
    assert "1 declined, 0 did not answer" in unwanted.value.message
    hint = "start other contractors, or call for something else; default/ada: it does not want to"
    assert unwanted.value.hint == hint


async def test_when_nobody_bids_the_hint_says_who_was_silent_and_what_was_ignored() -> None:
    market = Market()
    ghost, stranger = Ghost(market.app), Ghost(market.app, "stranger", "job.other")
    async with Harness(market.app) as h:
        await h.ctx.emit("job.other")
        asked = paint(h)
        await ghost.say("bid", score="high")
        stranger.thread = ghost.thread
        await stranger.say("bid", score=1.0)
        await h.advance(2)
        with pytest.raises(Unavailable) as caught:
            await asked
        for one in (ghost, stranger):
            one.stay.set()

    way = "give them a longer bid_timeout, or start more contractors"
    assert caught.value.hint == f"{way}; 1 malformed; 1 foreign"


async def test_one_who_hears_and_says_nothing_costs_the_bid_timeout_only() -> None:
    market = Market()
    market.add("ada", 1.0)

    @market.app.agent("logger", topics=["job.>"])
    async def logger(ctx: loom.Context, event: loom.Event) -> None: ...

    async with Harness(market.app) as h:
        asked = paint(h)
        await h.advance(1.9)
        assert market.painters["ada"].happened == []
        await h.advance(0.2)
        assert market.painters["ada"].happened == ["began"]
        await h.advance(1)
        assert (await asked).winner == "default/ada"


class Ghost:
    """An agent that says what a test wants about the contract that it hears of."""

    def __init__(self, app: loom.App, name: str = "ghost", topic: str = "job.paint") -> None:
        self.ctx: loom.Context[Any] | None = None
        self.thread = ""
        self.heard = asyncio.Event()
        self.stay = asyncio.Event()

        @app.agent(name, topics=[topic])
        async def ghost(ctx: loom.Context, event: loom.Event) -> None:
            self.ctx, self.thread = ctx, event.thread_id
            self.heard.set()
            await self.stay.wait()

    async def say(self, what: str, **data: Any) -> None:
        await self.heard.wait()
        assert self.ctx is not None
        await self.ctx.emit(f"thread.{self.thread}.{what}", {"v": 1, **data})


@pytest.mark.requirement("COLLAB-IGNORED")
async def test_late_duplicate_foreign_and_malformed_bids_are_counted_and_change_nothing() -> None:
    market = Market()
    market.add("ada", 3.0)
    ghost = Ghost(market.app)
    stranger = Ghost(market.app, "stranger", "thread.*.cfp")
    async with Harness(market.app) as h:
        asked = paint(h)
        await stranger.say("bid", score=99, offer=None)
        await ghost.say("bid", score="high", offer=None)
        await ghost.say("bid", score=99)
        await ghost.say("bid", score=99, offer=None, extra=1)
        await ghost.say("done", award=1, result=None)  # nothing was awarded yet
        await ghost.say("bid", score=1, offer=None)
        await ghost.say("decline", award=None, code="UNAVAILABLE", message="after all")
        await ghost.say("bid", score=99, offer=None)
        await h.idle()
        await ghost.say("bid", score=99, offer=None)
        await stranger.say("done", award=1, result=Painted(by="stranger", metres=1))
        await ghost.say("done", award=1, result=Painted(by="ghost", metres=1))
        await ghost.say("decline", award=1, code="X", message="")
        await ghost.say("chatter", text="is nobody's business")
        await h.advance(1)
        award = await asked
        ghost.stay.set()
        stranger.stay.set()

    assert award.winner == "default/ada"
    assert [bid.score for bid in award.bids] == [3.0, 1.0]
    ignored = award.ignored
    assert (ignored.foreign, ignored.malformed, ignored.duplicate, ignored.late) == (2, 3, 3, 3)


@pytest.mark.requirement("COLLAB-IGNORED")
async def test_a_bid_after_the_bidding_is_late() -> None:
    market = Market()
    market.add("ada", 1.0)
    ghost = Ghost(market.app)
    async with Harness(market.app) as h:
        asked = paint(h)
        await h.advance(2)
        await ghost.say("bid", score=99, offer=None)
        await h.advance(1)
        award = await asked
        ghost.stay.set()

    assert (award.winner, award.ignored.late) == ("default/ada", 1)


@pytest.mark.requirement("COLLAB-IGNORED")
async def test_a_winner_that_answers_twice_or_late_changes_nothing() -> None:
    market = Market()
    market.add("ada", 1.0)
    ghost = Ghost(market.app)
    async with Harness(market.app) as h:
        asked = paint(h, work_timeout=3)
        await ghost.say("bid", score=9, offer=None)
        await h.idle()
        await h.advance(3.5)  # the ghost has lost it, and ada is at work
        await ghost.say("done", award=1, result=Painted(by="ghost", metres=1))
        await ghost.say("done", award=2, result=Painted(by="ghost", metres=1))
        await h.advance(1)
        award = await asked
        await ghost.say("done", award=1, result=Painted(by="ghost", metres=1))
        ghost.stay.set()

    assert (award.winner, award.result.by, award.ignored.late) == ("default/ada", "ada", 2)


@pytest.mark.requirement("COLLAB-IGNORED")
async def test_an_answer_to_another_award_than_the_one_given_is_not_taken() -> None:
    app = loom.App("market")
    ghost = Ghost(app)
    async with Harness(app) as h:
        asked = paint(h)
        await ghost.say("bid", score=9, offer=None)
        await h.idle()
        for number in (2, 1):
            by = f"award {number}"
            await ghost.say("done", award=number, result=Painted(by=by, metres=1))
            await h.idle()
        award = await asked
        ghost.stay.set()

    assert (award.result.by, award.ignored.late) == ("award 1", 1)


async def test_a_contractor_gives_up_in_time_when_nobody_says_anything_any_more() -> None:
    market = Market()
    market.add("ada", 1.0, Hangs)
    async with Harness(market.app) as h:
        cfp = {"v": 1, "task": Fence(metres=7), "bid_ms": 1000, "timeout_ms": 9000}
        order = {"v": 1, "award": 1, "winner": "default/ada", "timeout_ms": 3000}
        await h.ctx.emit("job.paint", cfp, thread="t")
        await h.idle()
        await h.ctx.emit("thread.t.award", order, thread="t")
        await h.advance(3)
        (declined,) = h.events("thread.t.decline")

    assert (declined.data["code"], declined.data["award"]) == ("TIMEOUT", 1)
    assert market.painters["ada"].happened == ["began", "cancelled"]


@pytest.mark.requirement("COLLAB-IGNORED")
async def test_a_second_answer_in_the_same_moment_is_not_taken() -> None:
    app = loom.App("market")
    ghost = Ghost(app)
    async with Harness(app) as h:
        asked = paint(h)
        await ghost.say("bid", score=9, offer=None)
        await h.idle()
        await asyncio.gather(
            ghost.say("done", award=1, result=Painted(by="first", metres=1)),
            ghost.say("done", award=1, result=Painted(by="second", metres=1)),
        )
        award = await asked
        ghost.stay.set()

    assert award.result.by == "first"


@pytest.mark.requirement("COLLAB-IGNORED")
async def test_an_award_by_another_than_who_called_is_denied() -> None:
    market = Market()
    market.add("ada", 1.0)
    market.add("bob", 2.0, Hangs)
    ghost = Ghost(market.app)
    async with Harness(market.app) as h:
        asked = paint(h)
        await ghost.say("decline", award=None, code="UNAVAILABLE", message="")
        await ghost.say("award", award=1, winner="default/ada", timeout_ms=1000)
        await h.idle()
        told = h.events("loom.error.denied")
        await ghost.say("award", award=2, winner="default/ada", timeout_ms=1000)
        await h.idle()
        assert market.painters["ada"].happened == []
        assert market.painters["bob"].happened == ["began"]
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await h.idle()
        ghost.stay.set()

    assert [event.data["code"] for event in told] == ["DENIED", "DENIED"]  # by ada and by bob
    assert market.painters["bob"].happened == ["began", "cancelled"]
    assert market.painters["ada"].happened == ["lost 7"]


async def test_an_award_for_which_there_was_no_bid_is_declined() -> None:
    market = Market()
    market.add("ada", 1.0)
    async with Harness(market.app) as h:
        order = {"v": 1, "award": 1, "winner": "default/ada", "timeout_ms": 1000}
        await h.ctx.emit("thread.t.award", order)
        await h.ctx.emit("thread.t.award", {**order, "winner": "default/bob"})
        await h.idle()
        (declined,) = h.events("thread.t.decline")

    assert (declined.data["code"], declined.data["award"]) == ("CONFLICT", 1)
    assert market.painters["ada"].happened == []


async def test_a_task_of_another_type_is_declined_by_name() -> None:
    market = Market()
    market.add("ada", 1.0)
    async with Harness(market.app) as h:
        with pytest.raises(Unavailable):
            await contract_net(h.ctx, {"meters": 7}, topic="job.paint", bid_timeout=1, timeout=2)
        (declined,) = h.events("thread.*.decline")
        (told,) = h.events("loom.error.invalid_params")

    assert declined.data["code"] == "INVALID_PARAMS"
    assert told.data["field"] == "data.task.metres"


async def test_what_is_on_the_topic_and_no_call_is_refused() -> None:
    market = Market()
    market.add("ada", 1.0)
    async with Harness(market.app) as h:
        with pytest.raises(InvalidParams):
            await h.ctx.request("job.paint", {"v": 1, "task": {"metres": 1}})


def not_a_number(bid: Bid) -> float:
    return float("nan")


@pytest.mark.requirement("COLLAB-REFUSED")
@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"timeout": 0}, "timeout"),
        ({"bid_timeout": 0}, "bid_timeout"),
        ({"bid_timeout": "1"}, "bid_timeout"),
        ({"bid_timeout": 31}, "bid_timeout"),
        ({"work_timeout": -1}, "work_timeout"),
        ({"score": not_a_number}, "score"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(more: dict[str, Any], field: str) -> None:
    market = Market()
    market.add("ada", 1.0)
    async with Harness(market.app) as h:
        with pytest.raises(InvalidParams) as caught:
            await paint(h, **more)
        await h.idle()
    assert caught.value.field == field


async def test_a_contractor_that_shares_its_group_does_not_start() -> None:
    app = loom.App("crowd")
    app.agent("ada", topics=["job"], group="painters")(Painter)
    app.agent("bob", topics=["job"], group="painters")(Painter)
    async with Harness(app) as h:
        await h.advance(10)
        assert {info.name: info.health for info in await h.ctx.agents()} == {
            "ada": "quarantined",
            "bob": "quarantined",
        }
        told = h.events("loom.error.handler_error")

    assert "shares the group 'painters'" in told[0].data["message"]


async def test_a_contractor_keeps_only_contracts_that_are_open() -> None:
    market = Market()
    market.add("ada", 1.0)
    market.add("bob", 2.0)
    async with Harness(market.app) as h:
        for _ in range(3):
            asked = paint(h)
            await h.advance(1)
            await asked
        await h.idle()
        kept = [vars(painter.made)["_contracts"] for painter in market.painters.values()]

    assert kept == [{}, {}]


@pytest.mark.requirement("COLLAB-REFUSED")
async def test_a_contractor_in_too_many_contracts_declines_until_they_are_over() -> None:
    market = Market()
    market.add("ada", 1.0)
    cfp = {"v": 1, "task": Fence(metres=7), "bid_ms": 1000, "timeout_ms": 9000}
    async with Harness(market.app) as h:
        for number in range(CONTRACTS_OPEN + 1):
            await h.ctx.emit("job.paint", cfp, thread=f"t{number}")
            await h.idle()
        (declined,) = h.events("thread.*.decline")
        await h.advance(9)
        await h.ctx.emit("job.paint", cfp, thread="again")
        await h.idle()
        assert len(h.events("thread.again.bid")) == 1

    assert declined.topic == f"thread.t{CONTRACTS_OPEN}.decline"
    assert declined.data["code"] == "EXHAUSTED"


@pytest.mark.requirement("COLLAB-REFUSED")
async def test_a_contract_keeps_so_many_bids_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "CONTRACT_BIDS", 2)
    market = Market()
    for name in ("ada", "bob", "eve"):
        market.add(name, 1.0)
    async with Harness(market.app) as h:
        asked = paint(h)
        await h.advance(3)
        award = await asked

    assert [bid.sender for bid in award.bids] == ["default/ada", "default/bob"]
    assert award.ignored.late == 1


async def test_without_a_type_any_task_is_taken_and_without_a_method_it_is_declined() -> None:
    app = loom.App("market")

    @app.agent("any", topics=["job.paint"])
    class Anything(Contractor):
        async def bid(self, ctx: loom.Context, task: Any) -> float:
            return 1.0

        async def execute(self, ctx: loom.Context, task: Any) -> Any:
            return task

    @app.agent("idle", topics=["job.paint"])
    class Idle(Contractor[Fence]):
        async def bid(self, ctx: loom.Context, task: Fence) -> float:
            return 2.0

    app.agent("nothing", topics=["job.paint"])(Contractor)
    async with Harness(app) as h:
        award = await contract_net(
            h.ctx, {"metres": 1}, topic="job.paint", bid_timeout=1, timeout=5
        )

    assert award.result == {"metres": 1}
    assert [(f.target, f.error.code) for f in award.failures] == [("default/idle", "NOT_SUPPORTED")]
    assert [(no.sender, no.code) for no in award.declined] == [("default/nothing", "NOT_SUPPORTED")]


async def test_no_more_is_awarded_when_time_is_up() -> None:
    market = Market()
    for name in ("ada", "bob", "eve"):
        market.add(name, 1.0, Hangs)
    async with Harness(market.app) as h:
        asked = paint(h, timeout=4, work_timeout=2)
        await h.advance(4)
        with pytest.raises(DeadlineExceeded) as caught:
            await asked
        await h.idle()
        assert market.painters["eve"].happened == ["lost 7"]

    assert "awarded 2 times" in caught.value.message


async def test_a_contract_ends_with_its_app() -> None:
    app = loom.App("market")

    @app.agent("deaf", topics=["job.paint"])
    async def deaf(ctx: loom.Context, event: loom.Event) -> None: ...

    async with app.running() as ctx:
        asked = asyncio.create_task(
            contract_net(ctx, 1, topic="job.paint", bid_timeout=50, timeout=60)
        )
        await asyncio.sleep(0)
    with pytest.raises(loom.LoomError) as caught:
        await asked
    assert caught.value.code == "CANCELLED"
