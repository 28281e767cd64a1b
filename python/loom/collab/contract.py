"""Give a task to the best bidder: the side of who wants it done."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, overload

from pydantic import ValidationError
from typing_extensions import TypeVar

from loom.checks import check_function, check_number, check_seconds
from loom.collab.messages import Awarded, BidMade, Cfp, Declined, Done, Message, milliseconds
from loom.collab.partial import Failure
from loom.collab.waiting import Deadline, ends_within
from loom.context import Context
from loom.envelope import Event
from loom.errors import (
    CODES,
    Cancelled,
    DeadlineExceeded,
    InvalidParams,
    LoomError,
    Unavailable,
    error_from_code,
)
from loom.limits import CONTRACT_BIDS
from loom.validation import adapter_of, check_returns, expected_of, invalid, validated

T = TypeVar("T", default=Any)
M = TypeVar("M", bound=Message)

_LEFT = "loom.directory.agent.left"
_CHANGED = "loom.directory.agent.changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bid:
    """What one contractor bid: a score, the higher the better, and what else it offers."""

    sender: str
    score: float
    offer: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """A contractor that did not bid, and why."""

    sender: str
    code: str
    message: str


@dataclass(slots=True, kw_only=True)
class Ignored:
    """Messages that changed nothing, counted.

    ``late``: a bid after the bidding or over ``contract_bids``, or word of who is not the winner
    any more; ``duplicate``: a second bid of one contractor; ``foreign``: from an agent that was not
    called; ``malformed``: not of the schema.
    """

    late: int = 0
    duplicate: int = 0
    foreign: int = 0
    malformed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Award(Generic[T]):
    """How a contract was fulfilled.

    ``winner`` has given ``result``; ``bids`` are all, the best first; ``declined`` those who did
    not bid; ``failures`` the better bidders that failed or left (``index`` is the place of their
    bid); ``reawards`` counts how often it was awarded again.
    """

    winner: str
    result: T
    bids: list[Bid]
    declined: list[Decline]
    reawards: int
    failures: list[Failure]
    ignored: Ignored


Score: TypeAlias = Callable[[Bid], float]


@overload
async def contract_net(
    ctx: Context[Any],
    task: Any,
    *,
    topic: str,
    bid_timeout: float,
    timeout: float,
    score: Score | None = None,
    work_timeout: float | None = None,
) -> Award[Any]: ...
@overload
async def contract_net(
    ctx: Context[Any],
    task: Any,
    *,
    topic: str,
    bid_timeout: float,
    timeout: float,
    returns: type[T],
    score: Score | None = None,
    work_timeout: float | None = None,
) -> Award[T]: ...
async def contract_net(
    ctx: Context[Any],
    task: Any,
    *,
    topic: str,
    bid_timeout: float,
    timeout: float,
    returns: type[Any] | None = None,
    score: Score | None = None,
    work_timeout: float | None = None,
) -> Award[Any]:
    """Call for proposals on ``topic``, award ``task`` to the best bidder, return what it made.

    Bidding ends after ``bid_timeout`` seconds, or when all who hear ``topic`` have answered. The
    best bid is the one with the highest score: the bidder's own, or what ``score`` makes of the
    bid; the first of equals. A winner that fails, leaves, gives something that is no ``returns``,
    or is not done within ``work_timeout`` seconds (by default an equal share of what is left, for
    each bidder) loses it to the next best. All of it ends after ``timeout`` seconds.

    Raises:
        InvalidParams: a wrong timeout, or a score that is no finite number.
        Unavailable: nobody hears ``topic``, nobody bid, or all who did have failed.
        DeadlineExceeded: it was awarded, and not done in time.
    """
    deadline = Deadline(ctx, timeout)
    check_seconds(bid_timeout, "bid_timeout")
    bidding = Deadline(ctx, bid_timeout)
    if bid_timeout > timeout:
        raise InvalidParams(
            f"bidding takes {bid_timeout} s of {timeout} s",
            field="bid_timeout",
            hint="leave time for the work",
        )
    if work_timeout is not None:
        check_seconds(work_timeout, "work_timeout")
    if score is not None:
        check_function(score, "score", "score=lambda bid: …")
    check_returns(returns)
    groups = {
        f"{ctx.namespace}/{info.name}": info.group
        for info in await ctx.agents(topic=topic)
        if info.health != "quarantined"
    }
    if not groups:
        raise Unavailable(
            f"no agent hears {topic!r}",
            field="topic",
            hint="start a contractor: an agent derived from loom.collab.Contractor, on this topic",
        )
    async with _tender(ctx, groups) as tender:
        cfp = Cfp(
            v=1,
            task=task,
            bid_ms=milliseconds(bidding.left),
            timeout_ms=milliseconds(deadline.left),
        )
        await tender.call(topic, cfp)
        await bidding.ends(tender.bids_are_in)
        ranked = tender.close_bidding(score)
        for index, bid in enumerate(ranked):
            if deadline.is_over:
                break
            share = work_timeout or deadline.left / (len(ranked) - index)
            made = await tender.award(index, bid, min(share, deadline.left), returns)
            if made is not None:
                return tender.fulfilled(bid, made.result, ranked)
        raise tender.unfulfilled(topic, deadline)


@dataclass(frozen=True, slots=True)
class _Made:
    """What a winner has made."""

    result: Any


class _Tender:
    """One contract, from its call to its end."""

    def __init__(
        self,
        ctx: Context[Any],
        contract: str,
        groups: dict[str, str],
    ) -> None:
        self._ctx = ctx
        self._contract = contract
        self._prefix = f"thread.{contract}."
        self._takes = {
            f"{self._prefix}bid": self._on_bid,
            f"{self._prefix}decline": self._on_decline,
            f"{self._prefix}done": self._on_done,
        }
        self._groups = groups  # who was called, and its group
        self._bids: dict[str, Bid] = {}
        self._declined: dict[str, Decline] = {}
        self._gone: set[str] = set()
        self._is_bidding = True
        self._winner: Bid | None = None
        self._awards = 0
        self._ending: _Made | LoomError | None = None
        self._failures: list[Failure] = []
        self._ignored = Ignored()
        self.is_called = False
        self.events: AsyncIterator[Event[Any]]

    @property
    def hears(self) -> list[str]:
        """The topics on which contractors speak."""
        return list(self._takes)

    # -- what is said -----------------------------------------------------------------------------

    async def call(self, topic: str, cfp: Cfp) -> None:
        """Publish the call on its topic, and in the thread for who watches that."""
        self.is_called = True
        await self._ctx.emit(topic, cfp, thread=self._contract)
        await self._say("cfp", cfp)

    async def award(
        self, index: int, bid: Bid, seconds: float, returns: type[Any] | None
    ) -> "_Made | None":
        """Let one bidder do it; return what it made, or None when it has failed."""
        self._winner = bid
        self._ending = self._departed(bid.sender)
        if self._ending is None:
            self._awards += 1
            message = Awarded(
                v=1, award=self._awards, winner=bid.sender, timeout_ms=milliseconds(seconds)
            )
            await self._say("award", message)
            await ends_within(self._ctx, seconds, self._is_ended)
        ending = self._ending or DeadlineExceeded(
            f"{bid.sender} was not done in {seconds:.3g} s", who=bid.sender
        )
        if isinstance(ending, _Made):
            try:
                return ending if returns is None else _Made(_checked(returns, ending.result, bid))
            except InvalidParams as error:
                ending = error
        self._failures.append(Failure(index=index, target=bid.sender, error=ending))
        return None

    async def close(self) -> None:
        """Tell all who bid that it is over. Waits for nobody."""
        ended = Awarded(v=1, award=self._awards + 1, winner=None, timeout_ms=1)
        with suppress(LoomError):  # the app is stopping: nobody is there to be told
            await self._ctx.emit(
                f"{self._prefix}award", ended, qos="realtime", thread=self._contract
            )

    async def _say(self, what: str, message: Message) -> None:
        await self._ctx.emit(self._prefix + what, message, thread=self._contract)

    # -- what is heard ----------------------------------------------------------------------------

    async def bids_are_in(self) -> None:
        """Return when each group that was called has bid, declined or left."""
        await self._hear(lambda: not self._silent())

    async def _is_ended(self) -> None:
        await self._hear(lambda: self._ending is not None)

    async def _hear(self, enough: Callable[[], bool]) -> None:
        if enough():
            return
        async for event in self.events:
            self._take(event)
            if enough():
                return
        raise Cancelled("the app stopped", hint="the contract was not fulfilled")

    def _silent(self) -> set[str]:
        """Return the groups of which nobody has answered."""
        answered = {*self._bids, *self._declined}
        there = {group for who, group in self._groups.items() if who not in self._gone}
        return there - {self._groups[who] for who in answered}

    def _take(self, event: Event[Any]) -> None:
        if event.topic in (_LEFT, _CHANGED):
            if event.topic == _LEFT or event.data.get("health", "up") != "up":
                self._on_gone(f"{event.namespace}/{event.data['name']}")
            return
        if event.sender not in self._groups:
            self._ignored.foreign += 1
            return
        try:
            self._takes[event.topic](event)
        except InvalidParams:
            self._ignored.malformed += 1

    def _on_bid(self, event: Event[Any]) -> None:
        made = _read(BidMade, event)
        sender = event.sender
        if sender in self._bids or sender in self._declined:
            self._ignored.duplicate += 1
        elif not self._is_bidding or len(self._bids) >= CONTRACT_BIDS:
            self._ignored.late += 1
        else:
            self._gone.discard(sender)  # it has started again
            self._bids[sender] = Bid(sender=sender, score=made.score, offer=made.offer)

    def _on_decline(self, event: Event[Any]) -> None:
        said = _read(Declined, event)
        sender = event.sender
        if said.award is not None:
            if self._is_of_winner(sender, said.award):
                code = CODES.get(said.code, CODES["HANDLER_ERROR"])
                self._ending = error_from_code(code, said.message, who=sender)
            else:
                self._ignored.late += 1
        elif sender in self._bids or sender in self._declined:
            self._ignored.duplicate += 1
        elif len(self._declined) < CONTRACT_BIDS:
            self._declined[sender] = Decline(sender=sender, code=said.code, message=said.message)

    def _on_done(self, event: Event[Any]) -> None:
        said = _read(Done, event)
        if self._is_of_winner(event.sender, said.award):
            self._ending = _Made(said.result)
        else:
            self._ignored.late += 1

    def _on_gone(self, who: str) -> None:
        """One has left, or crashed, and so knows nothing of its bid any more."""
        if who in self._groups:
            self._gone.add(who)
            if self._winner is not None and self._winner.sender == who and self._ending is None:
                self._ending = self._departed(who)

    def _departed(self, who: str) -> LoomError | None:
        return Unavailable(f"{who} has left or crashed", who=who) if who in self._gone else None

    def _is_of_winner(self, sender: str, award: int) -> bool:
        winner = self._winner
        if winner is None or self._ending is not None:
            return False
        return winner.sender == sender and self._awards == award

    # -- what it comes to -------------------------------------------------------------------------

    def close_bidding(self, score: Score | None) -> list[Bid]:
        """Return the bids, the best first and of equals the one that came first."""
        self._is_bidding = False
        scores = {bid.sender: _score(bid, score) for bid in self._bids.values()}
        return sorted(self._bids.values(), key=lambda bid: -scores[bid.sender])

    def fulfilled(self, bid: Bid, result: Any, ranked: list[Bid]) -> Award[Any]:
        """Return how it went well."""
        return Award(
            winner=bid.sender,
            result=result,
            bids=ranked,
            declined=list(self._declined.values()),
            reawards=self._awards - 1,
            failures=self._failures,
            ignored=self._ignored,
        )

    def unfulfilled(self, topic: str, deadline: Deadline) -> LoomError:
        """Return why it did not go well."""
        failed = ", ".join(f"{f.target}: {f.error.code}" for f in self._failures[:4])
        if not self._bids:
            declined, silent = len(self._declined), len(self._silent())
            return Unavailable(
                f"nobody bid on {topic!r}: {declined} declined, {silent} did not answer",
                field="topic",
                hint=self._way_out(silent),
            )
        if deadline.is_over:
            return DeadlineExceeded(
                f"awarded {self._awards} times and not done in time", hint=failed or None
            )
        return Unavailable(f"all {len(self._bids)} bidders on {topic!r} have failed", hint=failed)

    def _way_out(self, silent: int) -> str:
        """Return what to do where nobody bid, and what is known of those who were called."""
        way = "start other contractors, or call for something else"
        if silent:
            way = "give them a longer bid_timeout, or start more contractors"
        told = [f"{no.sender}: {no.message}" for no in list(self._declined.values())[:4]]
        counts = {
            "left or crashed": len(self._gone - self._declined.keys()),
            "malformed": self._ignored.malformed,
            "foreign": self._ignored.foreign,
        }
        told += [f"{count} {what}" for what, count in counts.items() if count]
        return "; ".join([way, *told])


@asynccontextmanager
async def _tender(ctx: Context[Any], groups: dict[str, str]) -> AsyncGenerator[_Tender]:
    """Hear what contractors say about a contract; whatever ends it, those who bid are told."""
    contract = str(ctx.uuid())
    tender = _Tender(ctx, contract, groups)
    try:
        async with ctx.watch(*tender.hears, _LEFT, _CHANGED, qos="batched") as events:
            tender.events = events
            yield tender
    finally:
        if tender.is_called:
            await tender.close()


def _read(kind: type[M], event: Event[Any]) -> M:
    return validated(kind, event.envelope, "data")


def _checked(returns: type[Any], result: Any, bid: Bid) -> Any:
    try:
        return adapter_of(returns).validate_python(result)
    except ValidationError as error:
        name = getattr(returns, "__name__", str(returns))
        told = invalid(error, "result", f"the result is not a {name}", expected_of(returns))
        told.who = bid.sender
        raise told from None


def _score(bid: Bid, score: Score | None) -> float:
    value = bid.score if score is None else score(bid)
    try:
        return check_number(value, "score")
    except InvalidParams as error:
        error.who = bid.sender
        raise
