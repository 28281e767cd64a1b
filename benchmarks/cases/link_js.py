"""One publisher in Node.js to one subscriber in Python."""

from benchmarks.model import Case, Side, Target
from benchmarks.peers import javascript

STREAM = "Loom, realtime"
NATS = "NATS, nats.js to nats-py"

CASE = Case(
    name="link_js",
    title="Node.js → one subscriber in Python, in processes of their own",
    sides=(
        Side(name=STREAM, run=javascript.stream, count=200_000),
        Side(name="Loom, batched, each emit awaited", run=javascript.publish, count=100_000),
        Side(name=NATS, run=javascript.publish_nats, count=200_000),
    ),
    targets=(
        Target(
            name="link-js-nats",
            promise="Node.js to Python, against nats.js to nats-py",
            metric="rate",
            of=STREAM,
            against=NATS,
            at_least=1,
        ),
    ),
)
