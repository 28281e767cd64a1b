"""Publish one event at a time, acked when it is on the disk, from Python."""

from functools import partial

from benchmarks.cases.durable import JETSTREAM, LOOM, REDIS, publish
from benchmarks.model import Case, Side, Target
from benchmarks.peers import files, servers

_APPEND = "a file: append and fdatasync each"
_OVERWRITE = "a file of zeros: write and fdatasync each"

CASE = Case(
    name="durable_one",
    title="durable publish, acked from the disk, one at a time",
    sides=(
        Side(name=LOOM, run=partial(publish, in_flight=1), count=1_500),
        Side(name=_APPEND, run=files.append, count=1_500),
        Side(name=_OVERWRITE, run=files.overwrite, count=1_500),
        Side(name=JETSTREAM, run=partial(servers.jetstream_synced, in_flight=1), count=500),
        Side(name=REDIS, run=partial(servers.redis_synced, in_flight=1), count=500),
    ),
    targets=(
        Target(
            name="durable-append",
            promise="one durable publish at a time against a bare append and fdatasync",
            metric="rate",
            of=LOOM,
            against=_APPEND,
            at_least=0.8,
        ),
        Target(
            name="durable-overwrite",
            promise="one durable publish at a time against a write into zeros and fdatasync",
            metric="rate",
            of=LOOM,
            against=_OVERWRITE,
            at_least=0.6,
        ),
    ),
)
