"""The event that every case sends, 256 bytes of JSON, and what counts its arrivals."""

import asyncio
import statistics
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from time import perf_counter, perf_counter_ns
from typing import Final, TypedDict

import msgspec

from benchmarks.model import Sample

EVENT_BYTES: Final = 256
LONGEST: Final = 120.0  # seconds after which a phase is given up
FAN: Final = 100  # receivers of one event, where there are many
WARM_UP: Final = 10  # one part in so many is done once before the clock starts
_AT_ONCE = 64  # events that are sent before the loop comes round, however late they are

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
    count: int, tally: Tally, send: Callable[[int], Awaitable[object]], *, receivers: int = 1
) -> Sample:
    """Return how many events a second arrived, from the first that is sent to the last handled.

    An event that ``receivers`` hear arrives as often.
    """
    for phase in (max(1, count // WARM_UP), count):
        tally.reset(phase * receivers)
        start = perf_counter()
        async with asyncio.timeout(LONGEST):
            await send(phase)
            await tally.done.wait()
        seconds = perf_counter() - start
        check(tally.seen == tally.total, f"{tally.seen} of {tally.total} arrived")
    check(tally.value == EVENT["sequence"], "the handler read something else")
    return {"rate": tally.total / seconds}


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
        "p99": percentile(taken, 99) / 1e3,
    }


async def measure_acks(
    count: int, in_flight: int, publish: Callable[[], Awaitable[object]]
) -> Sample:
    """Return acks a second and their latencies, with so many publishers that each await theirs."""

    async def publish_one() -> object:
        await publish()
        return EVENT["sequence"]

    return await measure_requests(count, in_flight, publish_one)


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


async def pace(rate: float, seconds: float, *, rest: float = 0.0) -> AsyncGenerator[float]:
    """Yield the moment at which each event is due, ``rate`` times a second, and not before it.

    The load is open: whoever is slow does not slow its own arrivals, they are only late. The loop's
    timers are a millisecond coarse, so this looks at the clock each time the loop comes round, and
    keeps a processor busy; with ``rest`` it sleeps so many seconds whenever nothing is late.
    """
    start, total, gone = perf_counter(), round(rate * seconds), 0
    while gone < total:
        due = min(total, int((perf_counter() - start) * rate) + 1)
        late = due > gone + _AT_ONCE
        due = min(due, gone + _AT_ONCE)
        for number in range(gone, due):
            yield start + number / rate
        gone = max(gone, due)
        await asyncio.sleep(0 if late else rest)


def percentile(taken: Sequence[float], percent: int) -> float:
    """Return what ``percent`` of 100 values are below, by nearest rank."""
    return sorted(taken)[min(len(taken) - 1, len(taken) * percent // 100)]


def check(holds: bool, otherwise: str) -> None:
    """Stop the benchmark where its work was not done."""
    if not holds:
        raise AssertionError(otherwise)
