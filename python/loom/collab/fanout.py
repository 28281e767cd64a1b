"""Ask many side by side, and take what is enough."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeAlias, cast, overload

from typing_extensions import TypeVar

from loom.capabilities import Bound
from loom.codec import encode
from loom.collab.partial import Failure, Item, Partial, Poll, check_count, check_sequence, key_of
from loom.collab.waiting import Deadline, check_context
from loom.context import Context
from loom.errors import (
    Cancelled,
    DeadlineExceeded,
    HandlerError,
    InvalidParams,
    LoomError,
    Unavailable,
)
from loom.limits import FANOUT_TARGETS
from loom.validation import check_returns

T = TypeVar("T", default=Any)

_GRACE = 0.25  # seconds after the deadline in which a target may still say how it ended

_logger = logging.getLogger("loom.collab")

Target: TypeAlias = str | Bound[Any] | tuple[str, Mapping[str, Any]]
"""A topic, which gets a request; ``fn.bind(…)``; or a capability's name and its arguments."""


class Fanout(Generic[T]):
    """Requests and calls under way. Each method waits for as much as it says.

    One after the other they see the same answers: ``await group.first(2)``, look, and then
    ``await group.all()``. After the block they wait for nothing: what there was is all.
    """

    def __init__(self, total: int, deadline: Deadline) -> None:
        self._total = total
        self._open = total
        self._deadline = deadline
        self._items: list[Item[T]] = []
        self._failures: list[Failure] = []
        self._timed_out = False
        self._closed = False
        self._changed = asyncio.Event()

    async def any(self) -> T:
        """Return what the first to answer gave.

        Raises:
            DeadlineExceeded: nobody answered in time.
            Unavailable: all have failed.
        """
        await self._while(lambda: not self._items)
        if not self._items:
            raise self._nothing("none", "answered")
        return self._items[0].data

    async def first(self, k: int) -> Partial[Item[T]]:
        """Return when ``k`` have answered, or cannot any more, or time is up.

        Raises:
            InvalidParams: ``k`` is not 1 to the number of targets.
        """
        check_count(k, self._total)
        await self._while(lambda: len(self._items) < k <= len(self._items) + self._open)
        return self._partial()

    async def all(self) -> Partial[Item[T]]:
        """Return when all have answered or failed, or time is up."""
        await self._while(lambda: True)
        return self._partial()

    async def majority(self, key: Callable[[T], Hashable] | None = None) -> T:
        """Return the answer on which more than half of all targets agree.

        Those agree whose ``key`` is equal; without one, whose data is.

        Raises:
            DeadlineExceeded: they did not agree in time.
            Unavailable: they cannot agree any more.
        """
        agreed = key_of(key)
        poll = Poll(self._total)
        voted = spoilt = 0

        def goes_on() -> bool:
            nonlocal voted, spoilt
            for item in self._items[voted:]:
                voted += 1
                poll.vote(agreed(item.data))
            for _ in range(self._total - self._open - voted - spoilt):
                spoilt += 1
                poll.spoil()
            return not poll.is_over

        await self._while(goes_on)
        goes_on()
        if poll.winner is None:
            raise self._nothing(f"at most {poll.most}", "agree")
        return self._items[poll.winner].data

    # -- inside -----------------------------------------------------------------------------------

    def ended(self, ending: Item[T] | Failure) -> None:
        """Take how one target ended; after the end of the block it is too late."""
        if self._closed:
            return
        self._open -= 1
        if isinstance(ending, Item):
            self._items.append(ending)
        elif ending.error.code == "TIMEOUT" and self._deadline.is_over:
            self._timed_out = True  # it is missing; an INDETERMINATE one may have done something
        else:
            self._timed_out |= ending.error.code == "INDETERMINATE" and self._deadline.is_over
            self._failures.append(ending)
        self._changed.set()

    def close(self, *, timed_out: bool) -> None:
        """Wait no more: time is up, or the block has been left."""
        if not self._closed:
            self._closed = True
            self._timed_out |= timed_out and self._open > 0
            self._changed.set()

    async def _while(self, goes_on: Callable[[], bool]) -> None:
        while self._open and not self._closed and goes_on():
            self._changed.clear()
            await self._changed.wait()

    def _partial(self) -> Partial[Item[T]]:
        return Partial(
            items=list(self._items),
            failures=list(self._failures),
            missing=self._total - len(self._items) - len(self._failures),
            timed_out=self._timed_out,
        )

    def _nothing(self, who: str, did: str) -> LoomError:
        failed = ", ".join(f"{f.target}: {f.error.code}" for f in self._failures[:4])
        if self._timed_out:
            return DeadlineExceeded(
                f"{who} of {self._total} {did} in time", hint=failed or "give it more time"
            )
        return Unavailable(f"{who} of {self._total} {did}", hint=failed or None)


@overload
def fanout(
    ctx: Context[Any], targets: Sequence[Bound[T]], data: Any = None, *, timeout: float
) -> AbstractAsyncContextManager[Fanout[T]]: ...
@overload
def fanout(
    ctx: Context[Any], targets: Sequence[Target], data: Any = None, *, timeout: float
) -> AbstractAsyncContextManager[Fanout[Any]]: ...
@overload
def fanout(
    ctx: Context[Any],
    targets: Sequence[Target],
    data: Any = None,
    *,
    timeout: float,
    returns: type[T],
) -> AbstractAsyncContextManager[Fanout[T]]: ...
def fanout(
    ctx: Context[Any],
    targets: Sequence[Target],
    data: Any = None,
    *,
    timeout: float,
    returns: type[Any] | None = None,
) -> AbstractAsyncContextManager[Fanout[Any]]:
    """Ask all targets at once, while a block runs.

    ``async with fanout(ctx, ["a", "b"], data, timeout=5) as group``. Topics get ``data`` as a
    request; capabilities are called with the arguments that come with them. ``timeout`` in seconds
    is one deadline for all. ``returns`` is what answers must be (a bound capability has its own
    type); others are failures, and so is whatever else a target raises. Leaving the block cancels
    what has not ended.

    Raises:
        InvalidParams: no targets, too many, one that is none, or data that cannot be sent.
    """
    check_context(ctx)
    check_returns(returns)
    check_sequence(targets, "targets", FANOUT_TARGETS, "fanout_targets")
    for target in targets:
        _check(target)
    encode(data)  # what is wrong with it is said here, once, and not by each target
    return _fanout(ctx, targets, data, timeout, returns)


@asynccontextmanager
async def _fanout(
    ctx: Context[Any],
    targets: Sequence[Target],
    data: Any,
    timeout: float,
    returns: type[Any] | None,
) -> AsyncGenerator[Fanout[Any]]:
    deadline = Deadline(ctx, timeout)
    group = Fanout[Any](len(targets), deadline)

    async def ask(index: int, target: Target) -> None:
        name = _name(target)
        try:
            answer = await _ask(ctx, target, data, timeout, returns)
        except LoomError as error:
            group.ended(Failure(index=index, target=name, error=error))
        except asyncio.CancelledError:
            group.ended(Failure(index=index, target=name, error=Cancelled(f"{name} was cancelled")))
            raise
        except Exception as error:  # a task's root: middleware may raise anything
            _logger.exception("asking %s failed", name)
            told = HandlerError(f"asking {name} raised {type(error).__name__}")
            group.ended(Failure(index=index, target=name, error=told))
        else:
            group.ended(Item(index=index, target=name, data=answer))

    async def expire() -> None:
        await ctx.sleep(deadline.left + _GRACE)
        group.close(timed_out=True)

    ends = _Ends()
    async with ctx.task_group() as tasks:
        started = [tasks.create_task(ask(i, target)) for i, target in enumerate(targets)]
        started.append(tasks.create_task(expire()))
        with ends:
            try:
                await ctx.sleep(0)  # all are asked when the block begins
                yield group
            finally:
                group.close(timed_out=False)
                for task in started:
                    task.cancel()
    ends.raise_again()


class _Ends:
    """Keeps what a block raises, so that a task group around it does not wrap it."""

    def __init__(self) -> None:
        self._error: Exception | None = None

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Keep an error; a cancellation goes on."""
        if isinstance(error, Exception):
            self._error = error
        return self._error is not None

    def raise_again(self) -> None:
        """Raise what was kept."""
        if self._error is not None:
            raise self._error


async def _ask(
    ctx: Context[Any], target: Target, data: Any, timeout: float, returns: type[Any] | None
) -> Any:
    if isinstance(target, str):
        if returns is None:
            return (await ctx.request(target, data, timeout=timeout)).data
        return (await ctx.request(target, data, timeout=timeout, returns=returns)).data
    if isinstance(target, Bound):
        return await ctx.tool(target, timeout=timeout)
    name, args = target
    if returns is None:
        return await ctx.tool(name, args=args, timeout=timeout)
    return await ctx.tool(name, args=args, timeout=timeout, returns=returns)


def _name(target: Target) -> str:
    if isinstance(target, str):
        return target
    return target.capability.name if isinstance(target, Bound) else target[0]


def _check(target: object) -> None:
    if isinstance(target, str | Bound):
        return
    pair = cast("tuple[object, ...]", target) if isinstance(target, tuple) else ()
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
        raise InvalidParams(
            f"{target!r} is not a target",
            field="targets",
            hint='give a topic, fn.bind(…), or ("name", {…}) for a capability',
        )
