"""Realtime events among others through a node, at half of what the three processes can do.

First the capacity for the mix is measured, with as many events under way as the agent's queue
holds without loss. Then events have a timetable at half of that. A time counts from the moment at
which the event was due until its handler has it, in another process; an event that was refused or
gave way, and was never handled, counts as later than all others.
"""

import asyncio
import math
from array import array
from collections.abc import Mapping
from time import perf_counter
from typing import Any, Final, TypeAlias

import loom
from benchmarks import part
from benchmarks.model import Case, Sample, Side, Target, Together
from benchmarks.peers import node
from benchmarks.workload import EVENT, LONGEST, WARM_UP, check, pace, percentile
from loom.envelope import QoS
from loom.errors import Exhausted

LOAD: Final = 0.5  # of the capacity

_HERE: Final = "benchmarks.cases.link_realtime"
_WINDOW: Final = 640  # events that have not been seen; a queue takes all classes of so many
_TOLD: Final = 128  # events between two words of the receiver
_LATEST: Final = 2.0  # seconds in which what is under way arrives
_REST: Final = 0.001  # seconds that the publisher sleeps when no event is due
_LINE: Final = 1_000  # times that the receiver says in a line

_REALTIME: Final[QoS] = "realtime"
_BATCHED: Final[QoS] = "batched"
_BACKGROUND: Final[QoS] = "background"
_MIX: Final[tuple[QoS, ...]] = (_REALTIME, _BATCHED, _BATCHED, _BACKGROUND, _BATCHED)
_CLASSES: Final = (_REALTIME, _BATCHED, _BACKGROUND)

CAPACITY: Final = "Loom, its capacity for the mix"


def _side(qos: QoS) -> str:
    return f"Loom, its {qos} events at half of that ({_MIX.count(qos) / len(_MIX):.0%})"


# How late each event of a class was, in seconds: not in lists, which the garbage collector looks
# through again and again.
_Late: TypeAlias = "dict[QoS, array[float]]"


def _no_times() -> _Late:
    return {qos: array("d") for qos in _CLASSES}


class _Publisher:
    """Emits the mix: realtime events at once, for nobody waits with them, others as tasks."""

    def __init__(self, ctx: loom.Context) -> None:
        self._ctx = ctx
        self._more = asyncio.Event()
        self.sent = dict.fromkeys(_CLASSES, 0)
        self.refused = dict.fromkeys(_CLASSES, 0)
        self.seen = 0

    @property
    def taken(self) -> int:
        """Events that were sent and not refused."""
        return sum(self.sent.values()) - sum(self.refused.values())

    def see(self, seen: int) -> None:
        """Hear from the receiver how many it has had."""
        self.seen = seen
        self._more.set()

    async def fill(self, count: int) -> None:
        """Emit so many events, as fast as they are taken."""
        async with asyncio.timeout(LONGEST), asyncio.TaskGroup() as group:
            for number in range(count):
                while self.taken - self.seen > _WINDOW - _TOLD:
                    self._more.clear()
                    await self._more.wait()
                await self._emit(number, perf_counter(), group)

    async def drive(self, rate: float, count: int) -> None:
        """Emit so many events by timetable."""
        async with asyncio.timeout(LONGEST), asyncio.TaskGroup() as group:
            number = 0
            async for due in pace(rate, count / rate, rest=_REST):
                await self._emit(number, due, group)
                number += 1

    async def _emit(self, number: int, due: float, group: asyncio.TaskGroup) -> None:
        qos = _MIX[number % len(_MIX)]
        self.sent[qos] += 1
        data = {**EVENT, "due": due}
        if qos == _REALTIME:
            await self._ctx.emit("readings.hall", data, qos=qos)
        else:
            group.create_task(self._wait(data, qos))

    async def _wait(self, data: Mapping[str, Any], qos: QoS) -> None:
        try:
            await self._ctx.emit("readings.hall", data, qos=qos)
        except Exhausted:
            self.refused[qos] += 1


def measure(count: int) -> Mapping[str, Sample]:
    """Find the capacity with ``count`` events, and send as many by timetable."""
    return asyncio.run(_measure(count))


async def _measure(count: int) -> Mapping[str, Sample]:
    app = loom.App("publishes")
    publisher: _Publisher

    @app.agent("counts", topics=["seen"])
    async def _(ctx: loom.Context, event: loom.Event[Any]) -> None:
        publisher.see(event.data)

    async with node.up(), part.started(_HERE, "hear") as hears, app.running() as ctx:
        publisher = _Publisher(ctx)
        await hears.said()
        capacity = 0.0
        for phase in (max(_TOLD, count // WARM_UP), count):
            start = perf_counter()
            await publisher.fill(phase)
            until, late = await _heard(hears, publisher)
            check(sum(map(len, late.values())) == phase, "an event was lost within the window")
            capacity = phase / (until - start)
        before = dict(publisher.sent)
        await publisher.drive(LOAD * capacity, count)
        late = (await _heard(hears, publisher))[1]
    figures: dict[str, Sample] = {CAPACITY: {"rate": capacity}}
    for qos in _CLASSES:
        sent = publisher.sent[qos] - before[qos]
        lost = sent - len(late[qos])
        check(lost >= 0, "an event was handled twice")
        check(lost == publisher.refused[qos] or qos == _REALTIME, "an event was lost uncounted")
        taken = [*late[qos], *[math.inf] * lost]
        figures[_side(qos)] = {
            "p50": percentile(taken, 50) * 1e6,
            "p99": percentile(taken, 99) * 1e6,
            "kept": 100 * len(late[qos]) / sent,
        }
    return figures


async def _heard(hears: part.Part, publisher: _Publisher) -> tuple[float, _Late]:
    """Return when the last event of a phase was handled, and how late those of each class were."""
    await hears.tell(publisher.taken)
    late = _no_times()
    while "last" not in (told := await hears.said()):
        late[told["qos"]].extend(told["late"])
    return told["last"], late


async def hear() -> None:
    """Attach an agent that notes how late each event is, and say it when all of a phase has come.

    What this is told is how many there have been in all since the start.
    """
    app = loom.App("hears")
    late = _no_times()
    last, seen, total = 0.0, 0, -1
    done = asyncio.Event()

    @app.agent("listener", topics=["readings.>"])
    async def _(ctx: loom.Context, event: loom.Event[Any]) -> None:
        nonlocal last, seen
        last = perf_counter()
        late[event.qos].append(last - event.data["due"])
        seen += 1
        if seen == total:
            done.set()
        if seen % _TOLD == 0:
            await ctx.emit("seen", seen, qos="realtime")

    async with app.running():
        part.say(ready=True)
        async for total in part.numbers():
            done.clear()
            if seen < total:
                try:
                    async with asyncio.timeout(_LATEST):
                        await done.wait()
                except TimeoutError:
                    pass  # the rest is lost: whoever asks sees it
            for qos, some in late.items():
                for first in range(0, len(some), _LINE):
                    part.say(qos=qos, late=some[first : first + _LINE].tolist())
            late = _no_times()
            part.say(last=last)


CASE = Case(
    name="link_realtime",
    title="One publisher → one subscriber through a node, in classes, at half of the capacity",
    sides=(Side(name=CAPACITY), *(Side(name=_side(qos)) for qos in _CLASSES)),
    together=Together(run=measure, count=100_000),
    targets=(
        Target(
            name="link-realtime-p99",
            promise="P99 of realtime events through a node at half load, mixed (10 ms)",
            metric="p99",
            of=_side(_REALTIME),
            at_most=10_000,
        ),
    ),
)
