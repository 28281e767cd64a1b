"""What a benchmark consists of. It measures nothing and imports nothing that is measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Metric: TypeAlias = Literal[
    "rate",
    "p50",
    "p99",
    "longest",
    "lost",
    "kept",
    "cost",
    "time",
    "memory",
]
Sample: TypeAlias = Mapping[Metric, float]

UNITS: Mapping[Metric, str] = {
    "rate": "/s",
    "p50": "µs",
    "p99": "µs",
    "longest": "ms",
    "lost": "events",
    "kept": "%",
    "cost": "ns",
    "time": "ms",
    "memory": "MiB",
}


TIMES = "×"
TOGETHER = "all sides"  # in place of a side's name


class NotInstalledError(Exception):
    """A peer that is not installed: its side is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way of doing a case's work.

    ``run(count)`` warms up, does the work ``count`` times, checks that all of it was done, and
    returns its figures; None where the case measures its sides together.
    """

    name: str
    run: Callable[[int], Sample] | None = None
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """All sides of a case in one process: what disturbs one for a moment disturbs the others, too.

    ``run(count)`` does what ``Side.run`` does and returns the figures by the names of the sides.
    """

    run: Callable[[int], Mapping[str, Sample]]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was promised: a metric of one side, as a multiple of another's where one is named."""

    name: str
    promise: str
    metric: Metric
    of: str
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether ``value`` keeps the promise."""
        if self.at_least is not None and value < self.at_least:
            return False
        return self.at_most is None or value <= self.at_most

    @property
    def unit(self) -> str:
        """What follows a number that is compared with the promise."""
        return TIMES if self.against is not None else f" {UNITS[self.metric]}"

    @property
    def bound(self) -> str:
        """The promise as a comparison."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{self.unit}"
        return f"≤ {self.at_most:g}{self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question, the sides that answer it, and what was promised.

    Each side has a process of its own, but where ``together`` is given.
    """

    name: str
    title: str
    sides: tuple[Side, ...]
    targets: tuple[Target, ...]
    together: Together | None = None
