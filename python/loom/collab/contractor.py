"""Bid for tasks and do what is awarded: the side of who does it."""

import typing
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Generic, Self

from pydantic import ValidationError
from typing_extensions import TypeVar

from loom.agent import Agent, on
from loom.collab.messages import Awarded, BidMade, Cfp, Declined, Done
from loom.context import Context
from loom.envelope import Event
from loom.errors import (
    Conflict,
    DeadlineExceeded,
    Denied,
    Exhausted,
    InvalidParams,
    LoomError,
    NotSupported,
)
from loom.limits import CONTRACTS_OPEN
from loom.validation import adapter_of, expected_of, invalid

T = TypeVar("T", default=Any)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A bid that says more than its score: ``offer`` is what the one who scores it looks at."""

    score: float
    offer: Any = None


@dataclass(frozen=True, slots=True)
class _Contract:
    """A contract in which this contractor has a bid."""

    manager: str
    task: Any
    until: float


class Contractor(Agent, Generic[T]):
    """An agent that bids for tasks of type ``T`` on its topics, and does those that it wins.

    ``class Painter(Contractor[Fence])`` with ``bid`` and ``execute``. It is alone in its group: an
    award goes to the one who has bid.
    """

    _contracts: dict[str, _Contract]

    def __new__(cls) -> Self:
        """Make one without contracts; a subclass may have an ``__init__`` of its own."""
        made = super().__new__(cls)
        made._contracts = {}
        return made

    async def bid(self, ctx: Context[Any], task: T) -> float | Proposal | None:
        """Return the score of a bid, the higher the better, or None to decline."""
        raise NotSupported(f"{type(self).__name__} has no bid", field="bid")

    async def execute(self, ctx: Context[Any], task: T) -> Any:
        """Do the task and return its result. It is cancelled when it is taken away again."""
        raise NotSupported(f"{type(self).__name__} has no execute", field="execute")

    async def lost(self, ctx: Context[Any], task: T) -> None:
        """Hear that a contract is over in which this contractor had a bid and was never awarded.

        Another did the task, all who got it failed, time was up, or the manager was cancelled. Who
        was awarded it, declined, or was started again since it bid is not told. Does nothing.
        """

    async def on_start(self, ctx: Context[Any]) -> None:
        """Refuse to share a group; an override calls this one.

        Raises:
            InvalidParams: another agent is in its group.
        """
        groups = {info.name: info.group for info in await ctx.agents()}
        if list(groups.values()).count(groups[ctx.agent]) > 1:
            raise InvalidParams(
                f"contractor {ctx.agent!r} shares the group {groups[ctx.agent]!r}",
                field="group",
                hint="leave group out: an award goes to the one who has bid",
            )

    # -- what it hears ----------------------------------------------------------------------------

    async def on_event(self, ctx: Context[Any], event: Event[Cfp]) -> None:
        """Bid for what is called for, or decline."""
        contract, cfp, now = event.thread_id, event.data, ctx.monotonic()
        async with _Declining(ctx, contract, None):
            for known in [k for k, kept in self._contracts.items() if kept.until <= now]:
                del self._contracts[known]
            if len(self._contracts) >= CONTRACTS_OPEN:
                raise Exhausted(
                    f"{ctx.agent} has bids in {CONTRACTS_OPEN} contracts",
                    limit="contracts_open",
                    hint="call another contractor, or later",
                )
            task = _task(type(self), cfp.task)
            bid = await self.bid(ctx, task)
            if bid is None:
                await _decline(ctx, contract, None, "UNAVAILABLE", "it does not want to")
                return
            proposal = bid if isinstance(bid, Proposal) else Proposal(score=bid)
            made = BidMade(v=1, score=proposal.score, offer=proposal.offer)
            await ctx.emit(f"thread.{contract}.bid", made, thread=contract)
            until = now + cfp.timeout_ms / 1000
            self._contracts[contract] = _Contract(event.sender, task, until)

    @on("thread.*.award")
    async def on_award(self, ctx: Context[Any], event: Event[Awarded]) -> None:
        """Do what was awarded to this contractor; forget what is over."""
        contract, said = event.topic.split(".")[1], event.data
        is_mine = said.winner == f"{ctx.namespace}/{ctx.agent}"
        known = self._contracts.get(contract)
        if known is None:
            if is_mine:
                error = Conflict(f"{ctx.agent} has no bid in this contract")
                await _decline(ctx, contract, said.award, error.code, error.message)
            return
        if event.sender != known.manager:
            raise Denied(
                f"{event.sender} awards a contract of {known.manager}",
                field="winner",
                who=event.sender,
            )
        if said.winner is None:
            del self._contracts[contract]
            await self.lost(ctx, known.task)
        elif is_mine:
            await self._do(ctx, contract, known, said)

    async def _do(self, ctx: Context[Any], contract: str, known: _Contract, said: Awarded) -> None:
        """Execute it, unless it takes too long or is taken away; say how it ended."""
        del self._contracts[contract]
        awards = ctx.watch(f"thread.{contract}.award", qos="batched")
        async with _Declining(ctx, contract, said.award), awards as later:

            async def worked() -> tuple[Any] | None:
                return (await self.execute(ctx, known.task),)

            async def called_off() -> tuple[Any] | None:
                await _next_award(later, known.manager)
                return None

            async def timed_out() -> tuple[Any] | None:
                await ctx.sleep(said.timeout_ms / 1000)
                raise DeadlineExceeded(f"not done in {said.timeout_ms} ms")

            done = await ctx.race(worked(), called_off(), timed_out())
            if done is not None:
                made = Done(v=1, award=said.award, result=done[0])
                await ctx.emit(f"thread.{contract}.done", made, thread=contract)


async def _next_award(later: AsyncIterator[Event[Any]], manager: str) -> None:
    """Return when the manager says that somebody else does it, or nobody."""
    async for event in later:
        if event.sender == manager:
            return


class _Declining:
    """Says why, when its block raises. What is not a LoomError stays in this process."""

    def __init__(self, ctx: Context[Any], contract: str, award: int | None) -> None:
        self._ctx = ctx
        self._contract = contract
        self._award = award

    async def __aenter__(self) -> None:
        """Begin."""

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Decline where there is an error, and let it go on."""
        if error is None:
            return
        code, message = "HANDLER_ERROR", f"{self._ctx.agent} raised {type(error).__name__}"
        if isinstance(error, LoomError):
            code, message = error.code, error.message
        await _decline(self._ctx, self._contract, self._award, code, message)


async def _decline(
    ctx: Context[Any], contract: str, award: int | None, code: str, message: str
) -> None:
    said = Declined(v=1, award=award, code=code, message=message[:1024])
    await ctx.emit(f"thread.{contract}.decline", said, qos="realtime", thread=contract)


def _task(cls: type[Any], task: Any) -> Any:
    """Return the task as what ``Contractor[T]`` declares."""
    wanted = _declared(cls)
    if wanted is None:
        return task
    try:
        return adapter_of(wanted).validate_python(task)
    except ValidationError as error:
        name = getattr(wanted, "__name__", str(wanted))
        raise invalid(
            error, "data.task", f"the task is not a {name}", expected_of(wanted)
        ) from None


def _declared(cls: type[Any]) -> Any:
    for base in cls.__mro__:
        for origin in vars(base).get("__orig_bases__", ()):
            if typing.get_origin(origin) is Contractor:
                (wanted,) = typing.get_args(origin)
                return None if wanted is Any or isinstance(wanted, TypeVar) else wanted
    return None
