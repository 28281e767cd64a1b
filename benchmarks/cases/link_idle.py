"""A node with a thousand agents attached to it that nobody sends anything."""

from benchmarks.model import Case, Side, Target
from benchmarks.peers import attached

AGENTS = 1_000

ONE = "Loom, of one app"

CASE = Case(
    name="link_idle",
    title="A node to which 1,000 agents are attached that wait: its whole process",
    sides=(
        Side(name=ONE, run=attached.one, count=AGENTS),
        Side(name=f"Loom, of {attached.APPS} apps", run=attached.many, count=AGENTS),
    ),
    targets=(
        Target(
            name="link-idle-memory",
            promise="a node with 1,000 idle agents, all of its memory (60 MB)",
            metric="memory",
            of=ONE,
            at_most=57.2,
        ),
    ),
)
