"""Wait until all have come."""

from dataclasses import dataclass
from typing import Any

from loom.checks import check_text, check_whole
from loom.collab.coming import coming
from loom.collab.coordinator import COORDINATOR
from loom.collab.messages import Arrival, Outcome, milliseconds
from loom.collab.waiting import Deadline, check_context
from loom.context import Context
from loom.errors import InvalidParams
from loom.limits import BARRIER_MEMBERS
from loom.topics import check_name

_GRACE = 1.0  # seconds that a member waits longer than its barrier, for word of how it ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """How a barrier ended, the same for all members.

    ``members`` are those who came in time, in the order they came; ``complete`` says whether these
    are all ``n``.
    """

    n: int
    members: tuple[str, ...]
    complete: bool


async def barrier(
    ctx: Context[Any],
    name: str,
    n: int,
    *,
    timeout: float,
    member: str | None = None,
    thread: str | None = None,
) -> Meeting:
    """Come to the barrier ``name`` of a thread; return when ``n`` have come, or not in time.

    It ends for all at once: when the last one comes, or when the first who waits has waited its
    ``timeout`` (seconds). Who comes later, up to ``barrier_kept_seconds``, gets the same outcome at
    once. A member that is cancelled has come, and its ``timeout`` counts no more while others wait.
    Each agent counts once in a barrier, however often it comes, or once for each ``member``
    name that it gives. ``thread`` is by default the turn's.

    Raises:
        InvalidParams: a wrong name, number or timeout, or no thread.
        Conflict: others wait for another ``n``.
        Exhausted: too many barriers, or too many who wait.
        DeadlineExceeded: the turn that waits has no more time; the others go on.
    """
    check_context(ctx)
    check_name(name)
    check_whole(n, "n", BARRIER_MEMBERS, limit="barrier_members")
    if member is not None:
        check_name(member, field="member")
    where = ctx.thread_id if thread is None else thread
    if where is None:
        raise InvalidParams(
            "outside a handler a barrier belongs to no thread",
            field="thread",
            hint='give thread="…", the same for all who meet',
        )
    check_text(where, "thread")
    deadline = Deadline(ctx, timeout)
    await ctx.ensure_agent(COORDINATOR)
    arrival = Arrival(v=1, n=n, member=member, timeout_ms=milliseconds(deadline.left))
    with coming(ctx) as key:
        answer = await ctx.request(
            f"thread.{where}.barrier.{name}",
            arrival,
            returns=Outcome,
            timeout=deadline.left + _GRACE,
            key=key,  # members wait side by side, each in a lane of its own
            thread=where,
        )
    ended = answer.data
    return Meeting(n=ended.n, members=tuple(ended.members), complete=ended.complete)
