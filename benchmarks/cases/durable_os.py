"""Publish 64 events at a time, each acked when the system has it, from Python."""

from functools import partial

from benchmarks.cases.durable import LOOM, publish
from benchmarks.model import Case, Side, Target
from benchmarks.peers import servers

_JETSTREAM = "NATS JetStream, file storage as it comes"

CASE = Case(
    name="durable_os",
    title="durable publish, acked when it is written, 64 in flight",
    sides=(
        Side(name=LOOM, run=partial(publish, in_flight=64, ack="os"), count=40_000),
        Side(name=_JETSTREAM, run=partial(servers.jetstream, in_flight=64), count=12_000),
    ),
    targets=(
        Target(
            name="durable-os-jetstream",
            promise="64 publishes in flight that survive the process against JetStream's default",
            metric="rate",
            of=LOOM,
            against=_JETSTREAM,
            at_least=3,
        ),
    ),
)
