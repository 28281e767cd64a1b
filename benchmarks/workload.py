"""The event that every case sends, 256 bytes of JSON, and what counts its arrivals."""

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter, perf_counter_ns
from typing import Final, TypedDict

import msgspec

from benchmarks.model import Sample

EVENT_BYTES: Final = 256
LONGEST: Final = 120.0  # seconds after which a phase is given up
WARM_UP: Final = 10  # one part in so many is done once before the clock starts

encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder().decode


class Reading(TypedDict):
    """The event."""

    sensor: str
    sequence: int
    celsius: float
    note: str


def _event() -> Reading:
    event = Reading(sensor="hall-3.north", sequence=184_223, celsius=21.75, note="")
    event["note"] = "x" * (EVENT_BYTES - len(encode(event)))
    return event


EVENT: Final = _event()
assert len(encode(EVENT)) == EVENT_BYTES


class Tally:
    """How many of a phase's events have arrived."""

    __slots__ = ("done", "seen", "total", "value")

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen = 0
        self.value: object = None
        self.done = asyncio.Event()

    def reset(self, total: int) -> None:
        """Begin another phase."""
        self.total = total
        self.seen = 0
        self.done = asyncio.Event()


async def measure_rate(
    count: int, tally: Tally, send: Callable[[int], Awaitable[object]]
) -> Sample:
    """Return how many events a second arrived, from the first that is sent to the last handled."""
    for phase in (max(1, count // WARM_UP), count):
        tally.reset(phase)
        start = perf_counter()
        async with asyncio.timeout(LONGEST):
            await send(phase)
            await tally.done.wait()
        seconds = perf_counter() - start
        check(tally.seen == phase, f"{tally.seen} of {phase} events arrived")
    check(tally.value == EVENT["sequence"], "the handler read something else")
    return {"rate": count / seconds}


async def measure_requests(
    count: int, concurrency: int, ask: Callable[[], Awaitable[object]]
) -> Sample:
    """Return answers a second and their latencies, with ``concurrency`` askers in a closed loop."""
    each = max(1, count // concurrency)
    await _ask_all(max(1, each // WARM_UP), concurrency, ask)
    start = perf_counter()
    async with asyncio.timeout(LONGEST):
        taken = await _ask_all(each, concurrency, ask)
    seconds = perf_counter() - start
    check(len(taken) == each * concurrency, "an answer is missing")
    return {
        "rate": len(taken) / seconds,
        "p50": statistics.median(taken) / 1e3,
        "p99": sorted(taken)[len(taken) * 99 // 100] / 1e3,
    }


async def _ask_all(each: int, concurrency: int, ask: Callable[[], Awaitable[object]]) -> list[int]:
    taken: list[int] = []

    async def one() -> None:
        for _ in range(each):
            start = perf_counter_ns()
            answer = await ask()
            taken.append(perf_counter_ns() - start)
            check(answer == EVENT["sequence"], "an answer is wrong")

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(one())
    return taken


def check(holds: bool, otherwise: str) -> None:
    """Stop the benchmark where its work was not done."""
    if not holds:
        raise AssertionError(otherwise)
