"""Ten times what one agent can do, in all delivery classes, and then its usual load again.

The agent's capacity is measured first; its handlers wait as if for a model, so that the loop itself
is not what is overloaded. The load is open: the events have a timetable and do not wait for each
other. An event of the usual load is good when it is handled at most ``_LATE`` after it was due.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import loom
from benchmarks.model import Case, Sample, Side, Target, Together
from benchmarks.workload import EVENT, check, pace, percentile
from loom.envelope import QoS
from loom.errors import Exhausted
from loom.limits import QUEUE_ITEMS

SECONDS = 5  # of overload; `--scale 12` makes a minute of them
TIMES = 10  # the capacity
USUAL = 0.7  # of the capacity
BACK = 0.95  # of the goodput before the overload
CONCURRENCY = 16
WORK = 0.005  # seconds that a handler waits

_LATE = 0.5  # seconds
_BEFORE = 1.5  # seconds
_AFTER = 5.0  # seconds in which the goodput must be back
_LOOK = 1.5  # seconds that are looked at first: most often they are enough
_WINDOW = 0.25  # seconds over which goodput is counted
_TRIAL = 2_000  # events of which the capacity follows

# What is sent in the overload, as shares of it and as multiples of the capacity:
# 5 % realtime (half of the capacity), 15 % batched (1.5 times), 80 % background (8 times).
_REALTIME: QoS = "realtime"
_BATCHED: QoS = "batched"
_BACKGROUND: QoS = "background"
_MIX: tuple[QoS, ...] = tuple(
    _REALTIME if place == 0 else _BATCHED if place in {5, 10, 15} else _BACKGROUND
    for place in range(20)
)

USUAL_SIDE = "Loom, its usual load before, and the time until it is back"
REFUSED_SIDE = "Loom, refusals at 10 times its capacity"
_CLASSES = (_REALTIME, _BATCHED, _BACKGROUND)


def _side(qos: QoS) -> str:
    return f"Loom, its {qos} events at {TIMES} times its capacity"


class _Load:
    """What was sent: when it was due, in which class, and when it was handled."""

    def __init__(self) -> None:
        self.due: list[float] = []
        self.qos: list[QoS] = []
        self.handled: list[float] = []
        self.refusals: list[float] = []
        self.seen = 0

    async def handle(self, ctx: loom.Context, event: loom.Event[Any]) -> None:
        """Work on an event as if a model did."""
        await asyncio.sleep(WORK)
        number: int = event.data["sequence"]
        check(math.isnan(self.handled[number]), "an event was handled twice")
        self.handled[number] = perf_counter()
        self.seen += 1

    def add(self, due: float, qos: QoS) -> int:
        """Enter an event; return its number."""
        self.due.append(due)
        self.qos.append(qos)
        self.handled.append(math.nan)
        return len(self.due) - 1

    async def emit(self, ctx: loom.Context, number: int) -> None:
        """Emit an event; note how long after its moment it was refused, if it was."""
        data = {**EVENT, "sequence": number}
        try:
            if self.qos[number] == _BATCHED:
                await ctx.emit("readings.hall", data)
            else:
                await ctx.emit("readings.hall", data, qos=self.qos[number])
        except Exhausted:
            self.refusals.append(perf_counter() - self.due[number])

    async def drive(
        self, ctx: loom.Context, rate: float, seconds: float, mix: Sequence[QoS]
    ) -> range:
        """Emit by timetable; return the numbers of the events."""
        first = len(self.due)
        async with asyncio.TaskGroup() as group:
            async for due in pace(rate, seconds):
                number = self.add(due, mix[(len(self.due) - first) % len(mix)])
                if self.qos[number] == _BATCHED:
                    group.create_task(self.emit(ctx, number))  # it may wait for room
                else:
                    await self.emit(ctx, number)
        return range(first, len(self.due))

    def good(self, numbers: range) -> list[bool]:
        """Return which events were handled in time."""
        return [self.handled[number] - self.due[number] <= _LATE for number in numbers]

    def kept(self, numbers: range, qos: QoS) -> float:
        """Return how many of 100 events of a class were handled at all."""
        chosen = [number for number in numbers if self.qos[number] == qos]
        handled = sum(not math.isnan(self.handled[number]) for number in chosen)
        return 100 * handled / max(1, len(chosen))


def seconds_until_back(good: Sequence[bool], rate: float, usual: float) -> float:
    """Return after how many seconds the share of good events stays at ``BACK`` of ``usual``.

    Infinite where it is not there at the end of ``good``, of which ``rate`` were due in a second.
    """
    each = max(1, round(rate * _WINDOW))
    windows = [good[first : first + each] for first in range(0, len(good) - each + 1, each)]
    bad = [number for number, some in enumerate(windows) if sum(some) / len(some) < BACK * usual]
    if not bad:
        return _WINDOW
    return math.inf if bad[-1] == len(windows) - 1 else (bad[-1] + 2) * _WINDOW


def measure(count: int) -> Mapping[str, Sample]:
    """Overload one agent for ``count`` seconds."""
    return asyncio.run(_measure(count))


async def _measure(count: int) -> Mapping[str, Sample]:
    app = loom.App("bench")
    load = _Load()
    app.agent("worker", topics=["readings.>"], concurrency=CONCURRENCY)(load.handle)
    async with app.running() as ctx:
        capacity = await _capacity(ctx, load)
        usual = USUAL * capacity
        before = load.good(await _usual_load(ctx, load, usual, _BEFORE))
        share = sum(before) / len(before)
        check(share > USUAL, "the usual load is too much already")
        overload = await load.drive(ctx, TIMES * capacity, count, _MIX)
        refusals = list(load.refusals)
        after = load.good(await _usual_load(ctx, load, usual, _LOOK))
        back = seconds_until_back(after, usual, share)
        if math.isinf(back):
            after += load.good(await _usual_load(ctx, load, usual, _AFTER - _LOOK))
            back = seconds_until_back(after, usual, share)
        _check_books(app, load)
    check(len(refusals) > 0, "nothing was refused")
    return {
        USUAL_SIDE: {"rate": usual * share, "time": back * 1e3},
        REFUSED_SIDE: {
            "rate": len(refusals) / count,
            "p50": percentile(refusals, 50) * 1e6,
            "p99": percentile(refusals, 99) * 1e6,
        },
        **{_side(qos): {"kept": load.kept(overload, qos)} for qos in _CLASSES},
    }


async def _capacity(ctx: loom.Context, load: _Load) -> float:
    """Return how many events a second are handled at the most."""
    start, last = perf_counter(), load.seen + _TRIAL
    while load.seen < last:
        if len(load.due) < last and len(load.due) - load.seen < QUEUE_ITEMS // 2:
            await load.emit(ctx, load.add(perf_counter(), _BATCHED))
        else:
            await asyncio.sleep(0)
    return _TRIAL / (perf_counter() - start)


async def _usual_load(ctx: loom.Context, load: _Load, rate: float, seconds: float) -> range:
    """Emit the usual load, and wait until what is not handled yet is late."""
    numbers = await load.drive(ctx, rate, seconds, [_BATCHED])
    await asyncio.sleep(_LATE)
    return numbers


def _check_books(app: loom.App, load: _Load) -> None:
    """See that each event was matched or its sender was told, and where the matched ones went."""
    (books,) = app.stats()["subscriptions"]
    check(books["matched"] == len(load.due) - len(load.refusals), "an event was lost uncounted")
    gone = books["delivered"] + books["expired"] + sum(books["dropped"].values())
    check(books["matched"] == gone + books["queued"] + books["leased"], "its books do not agree")


CASE = Case(
    name="overload",
    title=f"{TIMES} times what one agent can handle, then {USUAL:g} times",
    sides=(
        Side(name=USUAL_SIDE),
        Side(name=REFUSED_SIDE),
        *(Side(name=_side(qos)) for qos in _CLASSES),
    ),
    together=Together(run=measure, count=SECONDS),
    targets=(
        Target(
            name="overload-back",
            promise=f"time after {TIMES} × overload until {BACK:.0%} of the goodput is back",
            metric="time",
            of=USUAL_SIDE,
            at_most=5_000,
        ),
        Target(
            name="overload-refusals",
            promise=f"refusals at {TIMES} × overload, P99",
            metric="p99",
            of=REFUSED_SIDE,
            at_most=5_000,
        ),
        Target(
            name="overload-batched",
            promise="order of shedding: share of batched events that is handled, of background",
            metric="kept",
            of=_side(_BATCHED),
            against=_side(_BACKGROUND),
            at_least=1,
        ),
    ),
)
