"""request → reply in one process, 64 at a time."""

from benchmarks.cases.request import request
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import autogen

CONCURRENCY = 64


def requests(count: int) -> Sample:
    """As in the case ``request``, by 64 tasks."""
    return request(count, CONCURRENCY)


CASE = Case(
    name="concurrent",
    title="request → reply, 64 at a time",
    sides=(
        Side(name="Loom", run=requests, count=64_000),
        Side(name="AutoGen core", run=autogen.ask_concurrently, count=3_200),
    ),
    targets=(
        Target(
            name="concurrent-autogen",
            promise="request → reply against AutoGen core's send_message, 64 at a time",
            metric="rate",
            of="Loom",
            against="AutoGen core",
            at_least=20,
        ),
    ),
)
