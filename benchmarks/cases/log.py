"""The log alone, in Rust: 256 publishers that wait for the disk, and SQLite in its place."""

from functools import partial

from benchmarks.model import Case, Side, Target
from benchmarks.peers.publishers import publish

_LOOM = "Loom's log"
_SQLITE = "SQLite, WAL, synchronous=FULL"

CASE = Case(
    name="log",
    title="the log alone: 256 publishers, each waits until its record is on the disk",
    sides=(
        Side(name=_LOOM, run=partial(publish, side="loom"), count=200_000),
        Side(name=_SQLITE, run=partial(publish, side="sqlite"), count=100_000),
    ),
    targets=(
        Target(
            name="log-sqlite",
            promise="256 waiting publishers, in Rust, against SQLite with the same batching",
            metric="rate",
            of=_LOOM,
            against=_SQLITE,
            at_least=1.3,
        ),
    ),
)
