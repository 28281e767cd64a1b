"""A log of a million records behind its last snapshot: folding it at a start, and reading it."""

from collections.abc import Mapping

from benchmarks import disk
from benchmarks.model import Case, Sample, Side, Target, Together
from benchmarks.peers.publishers import run

RECOVER = "Loom's log, a start that folds all of it"
READ = "Loom's log, a reader from its beginning"


def measure(count: int) -> Mapping[str, Sample]:
    """Write so many records, recover and read them."""
    with disk.directory() as place:
        run("prepare", count, place)
        return {RECOVER: run("recover", count, place), READ: run("read", count, place)}


CASE = Case(
    name="log_tail",
    title="the log alone: a tail of 1,000,000 records",
    sides=(Side(name=RECOVER), Side(name=READ)),
    together=Together(run=measure, count=1_000_000),
    targets=(
        Target(
            name="log-recover",
            promise="recovery of a tail of 1,000,000 records",
            metric="time",
            of=RECOVER,
            at_most=2_000,
        ),
        Target(
            name="log-read",
            promise="reading the log",
            metric="rate",
            of=READ,
            at_least=500_000,
        ),
    ),
)
