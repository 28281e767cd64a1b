"""The engine alone, in Rust, without Python around it.

What it is compared with, an earlier Loom, is not here to be measured: its figures are constants,
taken on this kind of machine.
"""

from functools import partial

from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers.criterion import nanoseconds
from benchmarks.workload import FAN

EARLIER_PUBLISH = 220_000.0  # events a second
EARLIER_FAN_OUT = 550_000.0  # deliveries a second
MILLISECONDS = 400

PUBLISH = "publish/one"
FAN_OUT = f"fanout/{FAN}"
FEW = 10  # filters
MANY = 10_000
BENCHES = (PUBLISH, FAN_OUT, *(f"{kind}/{n}" for kind in ("warm", "cold") for n in (FEW, MANY)))

_EARLIER = "an earlier Loom, {}, a constant"
_PUBLISH = "publish to one subscriber, take and finish"
_FAN_OUT = "publish to 100 subscribers, take and finish (deliveries)"


def rate(count: int, *, bench: str, receivers: int = 1) -> Sample:
    """Return deliveries a second."""
    return {"rate": receivers * 1e9 / nanoseconds(count, bench)}


def cost(count: int, *, bench: str) -> Sample:
    """Return what one event costs."""
    return {"cost": nanoseconds(count, bench)}


def constant(count: int, *, rate: float) -> Sample:
    """Return what was measured once, elsewhere."""
    return {"rate": rate}


def _filters(kind: str, number: int) -> str:
    topics = "a thousand topics" if kind == "warm" else "topics never seen before"
    return f"{number:,} filters, {topics}"


CASE = Case(
    name="core",
    title="the engine alone, in Rust",
    sides=(
        Side(name=_PUBLISH, run=partial(rate, bench=PUBLISH), count=MILLISECONDS),
        Side(name=_EARLIER.format("publish"), run=partial(constant, rate=EARLIER_PUBLISH)),
        Side(name=_FAN_OUT, run=partial(rate, bench=FAN_OUT, receivers=FAN), count=MILLISECONDS),
        Side(name=_EARLIER.format("1 → 100"), run=partial(constant, rate=EARLIER_FAN_OUT)),
        *(
            Side(
                name=_filters(kind, number),
                run=partial(cost, bench=f"{kind}/{number}"),
                count=MILLISECONDS,
            )
            for kind in ("warm", "cold")
            for number in (FEW, MANY)
        ),
    ),
    targets=(
        Target(
            name="core-publish",
            promise="the engine alone, one subscriber, against an earlier Loom's 0.22 million/s",
            metric="rate",
            of=_PUBLISH,
            against=_EARLIER.format("publish"),
            at_least=10,
        ),
        Target(
            name="core-fanout",
            promise="the engine alone, 1 → 100, against an earlier Loom's 0.55 million/s",
            metric="rate",
            of=_FAN_OUT,
            against=_EARLIER.format("1 → 100"),
            at_least=5,
        ),
        Target(
            name="core-warm",
            promise="the engine alone, 10,000 filters against 10, a thousand topics",
            metric="cost",
            of=_filters("warm", MANY),
            against=_filters("warm", FEW),
            at_most=1.5,
        ),
        Target(
            name="core-cold",
            promise="the engine alone, 10,000 filters against 10, topics never seen before",
            metric="cost",
            of=_filters("cold", MANY),
            against=_filters("cold", FEW),
            at_most=4,
        ),
    ),
)
