"""request → reply from process to process, one at a time."""

from functools import partial

from benchmarks.model import Case, Side, Target
from benchmarks.peers import nats, node

CASE = Case(
    name="link_request",
    title="request → reply between processes, one at a time",
    sides=(
        Side(name="Loom", run=partial(node.request, concurrency=1), count=8_000),
        Side(name="NATS, nats-py", run=partial(nats.request, concurrency=1), count=5_000),
    ),
    targets=(
        Target(
            name="link-request-nats",
            promise="request → reply between processes against NATS, one at a time",
            metric="rate",
            of="Loom",
            against="NATS, nats-py",
            at_least=1,
        ),
    ),
)
