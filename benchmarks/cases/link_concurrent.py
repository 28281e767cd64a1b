"""request → reply and calls from process to process, 64 at a time."""

from functools import partial

from benchmarks.model import Case, Side, Target
from benchmarks.peers import autogen_grpc, nats, node

REQUEST = "Loom, request → reply"
CALL = "Loom, a call of a capability"
NATS = "NATS, nats-py, request → reply"
AUTOGEN = "AutoGen's runtime over gRPC, send_message"

CASE = Case(
    name="link_concurrent",
    title="request → reply and calls between processes, 64 at a time",
    sides=(
        Side(name=REQUEST, run=partial(node.request, concurrency=64), count=64_000),
        Side(name=CALL, run=partial(node.call, concurrency=64), count=64_000),
        Side(name=NATS, run=partial(nats.request, concurrency=64), count=32_000),
        Side(name=AUTOGEN, run=partial(autogen_grpc.ask, concurrency=64), count=3_200),
    ),
    targets=(
        Target(
            name="link-concurrent-nats",
            promise="request → reply between processes against NATS, 64 at a time",
            metric="rate",
            of=REQUEST,
            against=NATS,
            at_least=1.5,
        ),
        Target(
            name="link-call-autogen",
            promise="calls between processes against AutoGen's runtime over gRPC, 64 at a time",
            metric="rate",
            of=CALL,
            against=AUTOGEN,
            at_least=10,
        ),
    ),
)
