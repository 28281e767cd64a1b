"""The view of a log that grows by 10,000 events a second, and the loop of the node beside it.

First without a view, then with one that another process keeps up to date. The view is late by what
passed between the ack of the last event that it shows and the moment at which it shows more.
"""

import asyncio
import sys
from bisect import bisect_right
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic, perf_counter

import loom
from benchmarks import disk
from benchmarks.model import Case, Sample, Side, Target, Together
from benchmarks.workload import EVENT, check, pace, percentile

RATE = 10_000.0  # durable events a second
ALONE = "Loom, no view"
BESIDE = "Loom, a view is kept up to date"
_TICK = 0.001  # seconds
_ROOT = Path(__file__).resolve().parents[2]


class _Load:
    """Durable events by timetable, when each was acked, and how late the loop was meanwhile."""

    def __init__(self, ctx: loom.Context) -> None:
        self._ctx = ctx
        self.acked: dict[str, float] = {}

    async def _publish(self) -> None:
        receipt = await self._ctx.emit("readings.hall", EVENT, ack="os")
        assert receipt.position is not None
        self.acked[receipt.position] = monotonic()

    async def run(self, seconds: float) -> list[float]:
        """Publish; return by how much the loop was late at each tick."""
        late: list[float] = []

        async def tick() -> None:
            while True:
                start = perf_counter()
                await asyncio.sleep(_TICK)
                late.append(perf_counter() - start - _TICK)

        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(tick())
            async with asyncio.TaskGroup() as publishing:
                async for _ in pace(RATE, seconds):
                    publishing.create_task(self._publish())
            ticking.cancel()
        return late


@asynccontextmanager
async def _followed(data: Path) -> AsyncGenerator[list[tuple[float, str]]]:
    """Let another process keep the view up to date; give what it says, all of it at the end."""
    told: list[tuple[float, str]] = []
    follower = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.follower", str(data), str(data.parent / "view")),
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert follower.stdout is not None
    line = b""
    while not line.endswith(b" 1\n"):  # it has caught up with what was there before
        line = await follower.stdout.readline()
    told.append(_read(line))
    try:
        yield told
    finally:
        rest, _ = await follower.communicate(b"\n")
        told += [_read(line) for line in rest.splitlines()]


def _behind(told: list[tuple[float, str]], acked: Mapping[str, float]) -> list[float]:
    """Return how old the newest event that was shown had become when more was shown."""
    positions = sorted(acked)  # their text is ordered as the log is
    found: list[float] = []
    for (_, shown), (later, _) in pairwise(told):
        newest = bisect_right(positions, shown)
        if 0 < newest < len(positions):
            found.append(later - acked[positions[newest - 1]])
    return found


def _read(line: bytes) -> tuple[float, str]:
    moment, position, _ = line.decode().split()
    return float(moment), position


def measure(count: int) -> Mapping[str, Sample]:
    """Publish for ``count`` seconds without a view, and as long with one."""
    return asyncio.run(_measure(count))


async def _measure(count: int) -> Mapping[str, Sample]:
    app = loom.App("bench")
    with disk.directory() as place:
        data = place / "data"
        async with app.running(data=data) as ctx:
            load = _Load(ctx)
            await load.run(count / 4)
            alone = await load.run(count)
            load.acked.clear()
            async with _followed(data) as told:
                beside = await load.run(count)
    behind = _behind(told, load.acked)
    check(len(behind) > 0, "the view has shown nothing")
    return {
        ALONE: {"p99": percentile(alone, 99) * 1e6},
        BESIDE: {"p99": percentile(beside, 99) * 1e6, "time": max(behind) * 1e3},
    }


CASE = Case(
    name="view",
    title=f"{RATE:,.0f} durable events a second: how late the loop is, and the view",
    sides=(Side(name=ALONE), Side(name=BESIDE)),
    together=Together(run=measure, count=2),
    targets=(
        Target(
            name="view-lag",
            promise=f"the view is late at {RATE:,.0f} events a second",
            metric="time",
            of=BESIDE,
            at_most=2_000,
        ),
        Target(
            name="view-loop",
            promise="P99 of the loop's lateness with a view that is kept up to date, and without",
            metric="p99",
            of=BESIDE,
            against=ALONE,
            at_most=1.1,
        ),
    ),
)
