"""Listen to many, and take what is enough."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, overload

from typing_extensions import TypeVar

from loom.checks import check_function, check_text
from loom.collab.partial import Failure, Partial, Poll, check_count, check_sequence, key_of
from loom.collab.waiting import Deadline, check_context
from loom.context import Context
from loom.envelope import Event
from loom.errors import Cancelled, DeadlineExceeded, Exhausted, InvalidParams, Unavailable
from loom.limits import AGENT_FILTERS, FANIN_EVENTS
from loom.topics import check_filter, matches
from loom.validation import check_returns, validated

T = TypeVar("T", default=Any)

ALL_THREADS = "*"


class Fanin(Generic[T]):
    """Events that come in. Each method waits for as much as it says.

    One after the other they see the same events: ``await heard.first(2)``, look, and then
    ``await heard.all()``.
    """

    def __init__(
        self,
        source: AsyncIterator[Event[Any]],
        topics: Sequence[str],
        deadline: Deadline,
        thread: str | None,
        returns: type[Any] | None,
    ) -> None:
        self._source = source
        self._topics = topics
        self._deadline = deadline
        self._thread = thread
        self._returns = returns
        self._events: list[Event[T]] = []
        self._failures: list[Failure] = []

    async def any(self) -> T:
        """Return the data of the first event.

        Raises:
            DeadlineExceeded: none came in time.
        """
        if not await self._until(lambda: bool(self._events)):
            raise DeadlineExceeded(
                f"nothing came on {', '.join(self._topics)} in time",
                hint="give it more time; what was published before the block is not heard",
            )
        return self._events[0].data

    async def first(self, k: int) -> Partial[Event[T]]:
        """Return when ``k`` events have come, or time is up.

        Raises:
            InvalidParams: ``k`` is not 1 to ``fanin_events``.
        """
        check_count(k, FANIN_EVENTS)
        in_time = await self._until(lambda: len(self._events) >= k)
        return self._partial(k - len(self._events), in_time=in_time)

    async def all(self) -> Partial[Event[T]]:
        """Return when an event of each filter has come, or time is up.

        ``missing`` counts the filters that nothing came for.
        """
        in_time = await self._until(lambda: not self._silent())
        return self._partial(self._silent(), in_time=in_time)

    async def majority(self, *, of: int, key: Callable[[T], Hashable] | None = None) -> T:
        """Return the data on which more than half of ``of`` senders agree.

        Those agree whose ``key`` is equal; without one, whose data is. A sender has one vote, its
        first; data that does not fit is a vote for nothing.

        Raises:
            DeadlineExceeded: they did not agree in time.
            Unavailable: they cannot agree any more.
        """
        agreed = key_of(key)
        poll = Poll(of)
        voted: set[str] = set()
        ballots: list[Event[T]] = []
        counted = failed = 0

        def is_over() -> bool:
            nonlocal counted, failed
            for event in self._events[counted:]:
                counted += 1
                if event.sender not in voted:
                    voted.add(event.sender)
                    ballots.append(event)
                    poll.vote(agreed(event.data))
            for failure in self._failures[failed:]:
                failed += 1
                if failure.target not in voted:
                    voted.add(failure.target)
                    poll.spoil()
            return poll.is_over

        if not await self._until(is_over):
            raise DeadlineExceeded(f"at most {poll.most} of {of} agree in time")
        if poll.winner is None:
            raise Unavailable(f"at most {poll.most} of {of} agree, and no more can")
        return ballots[poll.winner].data

    async def until(self, enough: Callable[[Sequence[Event[T]]], bool]) -> Partial[Event[T]]:
        """Return when ``enough`` says so of the events that have come, or time is up.

        Raises:
            InvalidParams: ``enough`` is not a function.
        """
        check_function(enough, "enough", "until(lambda events: …)")
        in_time = await self._until(lambda: enough(self._events))
        return self._partial(0, in_time=in_time)

    # -- inside -----------------------------------------------------------------------------------

    async def _until(self, enough: Callable[[], bool]) -> bool:
        """Take events until it is enough; tell whether it was in time."""

        async def take() -> None:
            async for event in self._source:
                self._keep(event)
                if enough():
                    return
            raise Cancelled("the app stopped", hint="nothing is heard any more")

        return enough() or await self._deadline.ends(take) or enough()

    def _keep(self, event: Event[Any]) -> None:
        if self._thread is not None and event.thread_id != self._thread:
            return
        if len(self._events) + len(self._failures) >= FANIN_EVENTS:
            raise Exhausted(
                f"{FANIN_EVENTS} events have come and it is not enough",
                field="events",
                limit="fanin_events",
                hint="listen to fewer topics, or ask for less",
            )
        if self._returns is None:
            self._events.append(event)
            return
        try:
            data = validated(self._returns, event.envelope, "data")
        except InvalidParams as error:
            error.who = event.sender
            index = next(i for i, topic in enumerate(self._topics) if matches(topic, event.topic))
            self._failures.append(Failure(index=index, target=event.sender, error=error))
        else:
            self._events.append(Event(event.envelope, data))

    def _silent(self) -> int:
        """Count the filters that nothing has come for."""
        heard = {event.topic for event in self._events}
        return sum(not any(matches(f, topic) for topic in heard) for f in self._topics)

    def _partial(self, missing: int, *, in_time: bool) -> Partial[Event[T]]:
        return Partial(
            items=list(self._events),
            failures=list(self._failures),
            missing=max(0, missing),
            timed_out=not in_time,
        )


@overload
def fanin(
    ctx: Context[Any], topics: Sequence[str], *, timeout: float, thread: str | None = None
) -> AbstractAsyncContextManager[Fanin[Any]]: ...
@overload
def fanin(
    ctx: Context[Any],
    topics: Sequence[str],
    *,
    timeout: float,
    returns: type[T],
    thread: str | None = None,
) -> AbstractAsyncContextManager[Fanin[T]]: ...
def fanin(
    ctx: Context[Any],
    topics: Sequence[str],
    *,
    timeout: float,
    returns: type[Any] | None = None,
    thread: str | None = None,
) -> AbstractAsyncContextManager[Fanin[Any]]:
    """Listen to events of some filters while a block runs.

    ``async with fanin(ctx, ["vote.*"], timeout=5) as heard`` hears what is published from the
    beginning of the block on, in the thread of the turn; outside a handler, or with ``thread="*"``,
    in all threads; else in ``thread``. ``timeout`` in seconds runs from the beginning of the block.
    Data that is no ``returns`` is a failure.

    Raises:
        InvalidParams: no filters, too many, or one that is none.
    """
    check_context(ctx)
    check_returns(returns)
    check_sequence(topics, "topics", AGENT_FILTERS, "agent_filters")
    for topic in topics:
        check_filter(topic, field="topics")
    if thread is not None:
        check_text(thread, "thread")
    only = ctx.thread_id if thread is None else thread
    return _fanin(ctx, topics, timeout, None if only == ALL_THREADS else only, returns)


@asynccontextmanager
async def _fanin(
    ctx: Context[Any],
    topics: Sequence[str],
    timeout: float,
    thread: str | None,
    returns: type[Any] | None,
) -> AsyncGenerator[Fanin[Any]]:
    deadline = Deadline(ctx, timeout)
    async with ctx.watch(*topics, qos="batched") as source:
        yield Fanin[Any](source, topics, deadline, thread, returns)
