"""One deadline for all that a primitive waits for, on the engine's clock."""

from collections.abc import Awaitable, Callable
from typing import Any

from loom.checks import check_seconds
from loom.context import Context
from loom.errors import InvalidParams

_HERE = 0.002  # seconds before the deadline in which it counts as reached: the engine counts in ms
_AWAY = 0.1  # and at most so many before the end of a turn, which a node tells as what is left


class Deadline:
    """When a primitive ends: ``timeout`` seconds from now, or with the turn it is part of.

    What a turn of a node has left is told when it is sent, so its end is late here by as long as
    that was on its way, and the node's word that time was up may come before it.
    """

    def __init__(self, ctx: Context[Any], timeout: float) -> None:
        check_context(ctx)
        check_seconds(timeout, "timeout")
        self._ctx = ctx
        now = ctx.monotonic()
        self.at: float = now + timeout
        self._reached: float = _HERE
        if ctx.deadline is not None and ctx.deadline < self.at:
            self.at = ctx.deadline
            self._reached = max(_HERE, min(_AWAY, (self.at - now) / 10))

    @property
    def left(self) -> float:
        """Seconds until then, 0 when it is over."""
        return max(0.0, self.at - self._ctx.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether it has been reached."""
        return self.left <= self._reached

    async def ends(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Run ``work`` until it ends or time is up; tell whether it has ended."""
        return await ends_within(self._ctx, self.left, work)


def check_context(ctx: object) -> None:
    """Refuse to work without a context.

    Raises:
        InvalidParams: ``ctx`` is something else.
    """
    if not isinstance(ctx, Context):
        raise InvalidParams(
            f"ctx is a {type(ctx).__name__}, not a Context",
            field="ctx",
            hint="give the ctx of a handler, or of app.running()",
        )


async def ends_within(
    ctx: Context[Any], seconds: float, work: Callable[[], Awaitable[None]]
) -> bool:
    """Run ``work`` for at most ``seconds`` of the engine's clock; tell whether it has ended.

    It gets one step even if there is no time: what is there already is taken.
    """

    async def worked() -> bool:
        await work()
        return True

    async def slept() -> bool:
        await ctx.sleep(seconds)
        return False

    return await ctx.race(worked(), slept())
