"""Publish a thousand events at a time, each acked when it is on the disk, from Python."""

from functools import partial

from benchmarks.cases.durable import JETSTREAM, LOOM, REDIS, publish
from benchmarks.model import Case, Side
from benchmarks.peers import servers

CASE = Case(
    name="durable_many",
    title="durable publish, acked from the disk, 1,000 in flight",
    sides=(
        Side(name=LOOM, run=partial(publish, in_flight=1_000), count=60_000),
        Side(name=JETSTREAM, run=partial(servers.jetstream_synced, in_flight=1_000), count=4_000),
        Side(name=REDIS, run=partial(servers.redis_synced, in_flight=1_000), count=10_000),
    ),
    targets=(),
)
