"""From a publisher to a hundred subscribers in one other process."""

from benchmarks.model import Case, Side, Target
from benchmarks.peers import nats, node

LOOM = "Loom, each emit awaited, 256 in flight"
NATS = "NATS, nats-py with callbacks"

CASE = Case(
    name="link_fanout",
    title="one publisher → 100 agents in another process (deliveries)",
    sides=(
        Side(name=LOOM, run=node.fan_out, count=6_000),
        Side(name=NATS, run=nats.fan_out, count=2_000),
    ),
    targets=(
        Target(
            name="link-fanout-nats",
            promise="process to process, one event to 100 agents, against NATS",
            metric="rate",
            of=LOOM,
            against=NATS,
            at_least=2.5,
        ),
    ),
)
