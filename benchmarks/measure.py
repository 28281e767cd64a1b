"""Runs the sides of a case in turn, round after round, each sample in a fresh process."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from benchmarks.model import TOGETHER, Case, Metric, Sample, Side, Target

_ROOT = Path(__file__).resolve().parent.parent
_LONGEST = 300.0  # seconds a sample may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of several values, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of ``values``."""
        return cls(median=statistics.median(values), least=min(values), greatest=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What one case gave: a sample of each side for each round; None where a peer is missing."""

    case: Case
    rounds: list[dict[str, Sample | None]] = field(default_factory=list["dict[str, Sample | None]"])

    def spread(self, side: Side, metric: Metric) -> Spread | None:
        """Return the spread of one figure of one side, None where it has none."""
        values = [sample[metric] for sample in self._samples(side.name) if metric in sample]
        return Spread.of(values) if values else None

    def outcome(self, target: Target) -> Spread | None:
        """Return what is compared with the promise, None where a side or its figure is missing.

        A ratio is made of the two samples of one round, so that what slows both cancels out.
        """
        values: list[float] = []
        for samples in self.rounds:
            own = _figure(samples[target.of], target.metric)
            other = (
                1.0 if target.against is None else _figure(samples[target.against], target.metric)
            )
            if own is None or other is None:
                return None
            values.append(own / other)
        return Spread.of(values)

    def _samples(self, name: str) -> list[Sample]:
        return [sample for samples in self.rounds if (sample := samples[name]) is not None]


def _figure(sample: Sample | None, metric: Metric) -> float | None:
    return None if sample is None else sample.get(metric)


def run(case: Case, *, rounds: int, scale: float, progress: Callable[[str], None]) -> Results:
    """Measure a case: its sides one after the other, and again, ``rounds`` times."""
    results = Results(case=case)
    for number in range(1, rounds + 1):
        samples: dict[str, Sample | None] = {}
        if case.together is not None:
            progress(f"{case.name} {number}/{rounds}: {TOGETHER}")
            samples |= _sample(case, TOGETHER, _scaled(case.together.count, scale))
        else:
            for side in case.sides:
                progress(f"{case.name} {number}/{rounds}: {side.name}")
                samples |= _sample(case, side.name, _scaled(side.count, scale))
        results.rounds.append(samples)
    return results


def _scaled(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def _sample(case: Case, side: str, count: int) -> dict[str, Sample | None]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sample", case.name, side, str(count)],
        cwd=_ROOT,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LONGEST,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{case.name}, {side}:\n{done.stderr[-3000:]}")
    told: Mapping[str, Mapping[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return {
        name: None if "missing" in sample else cast("Sample", sample)
        for name, sample in told.items()
    }


def _environment() -> dict[str, str]:
    """Return the environment without what changes how Python or Loom run."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "LOOM_", "OPENAI_"))
    }
