"""From a publisher in one process to a subscriber in another."""

from benchmarks.model import Case, Side, Target
from benchmarks.peers import autogen_grpc, grpc_aio, nats, node, zeromq

REALTIME = "Loom, realtime"
AWAITED = "Loom, each emit awaited, 256 in flight"
NATS = "NATS, nats-py with callbacks"
ZEROMQ = "ZeroMQ PUB and SUB, no broker"
GRPC = "grpc.aio, one stream, no broker"
AUTOGEN = "AutoGen's runtime over gRPC"


def _against(name: str, peer: str, words: str, ratio: float) -> Target:
    return Target(
        name=f"link-{name}",
        promise=f"process to process, realtime events, against {words}",
        metric="rate",
        of=REALTIME,
        against=peer,
        at_least=ratio,
    )


CASE = Case(
    name="link_publish",
    title="one publisher → one subscriber, each in a process of its own",
    sides=(
        Side(name=REALTIME, run=node.stream, count=300_000),
        Side(name=AWAITED, run=node.publish, count=200_000),
        Side(name=NATS, run=nats.publish, count=300_000),
        Side(name=ZEROMQ, run=zeromq.publish, count=60_000),
        Side(name=GRPC, run=grpc_aio.publish, count=20_000),
        Side(name=AUTOGEN, run=autogen_grpc.publish, count=3_000),
    ),
    targets=(
        _against("nats", NATS, "NATS, whose publish nobody answers either", 1.5),
        _against("zeromq", ZEROMQ, "ZeroMQ, without a broker", 4),
        _against("grpc", GRPC, "a stream of grpc.aio, without a broker", 15),
        _against("autogen", AUTOGEN, "AutoGen's runtime over gRPC", 60),
    ),
)
