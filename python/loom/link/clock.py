"""The two clocks an engine can run on, as an asyncio program sees them."""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol


class TimeSource(Protocol):
    """What keeps the time: the engine."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch."""
        ...

    def advance(self, seconds: float, /) -> None:
        """Move a virtual clock."""
        ...


class Clock(Protocol):
    """Time for one link: monotonic and wall readings, sleeping, and alarms for engine deadlines."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` of this clock."""
        ...


class SystemClock:
    """Real time."""

    def __init__(self, source: TimeSource) -> None:
        self.now: Callable[[], float] = source.now
        self.wall: Callable[[], float] = source.wall

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)


class VirtualClock:
    """Time that only ``advance`` moves: engine deadlines and sleepers see the same hand."""

    def __init__(self, source: TimeSource) -> None:
        self._source = source
        self.now: Callable[[], float] = source.now
        self.wall: Callable[[], float] = source.wall
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def sleep(self, seconds: float) -> None:
        """Return when the clock has been advanced by ``seconds``."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now() + seconds, next(self._order), wake))
        await wake

    def next_wake(self) -> float | None:
        """Return when the first sleeper is due, in seconds of this clock."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def advance_to(self, when: float) -> None:
        """Move the hand to ``when`` and wake who is due."""
        self._source.advance(max(0.0, when - self.now()))
        while (due := self.next_wake()) is not None and due <= self.now() + 1e-9:
            heapq.heappop(self._sleepers)[2].set_result(None)
