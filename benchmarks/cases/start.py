"""``import loom; loom.App("x")`` as a whole process."""

from functools import partial

from benchmarks.model import Case, Side, Target
from benchmarks.peers.processes import measure, python

_LOOM = python("-c", "import loom; loom.App('x')")
_PEER = python("-c", "import asyncio; from pydantic import BaseModel, TypeAdapter")
_EMPTY = python("-c", "")

CASE = Case(
    name="start",
    title='import loom; loom.App("x")',
    sides=(
        Side(name="Loom", run=partial(measure, command=_LOOM), count=8),
        Side(name="asyncio and pydantic", run=partial(measure, command=_PEER), count=8),
        Side(name="an empty program", run=partial(measure, command=_EMPTY), count=8),
    ),
    targets=(
        Target(
            name="start-time",
            promise="time against importing asyncio and pydantic's BaseModel and TypeAdapter",
            metric="time",
            of="Loom",
            against="asyncio and pydantic",
            at_most=1.3,
        ),
        Target(
            name="start-memory",
            promise="memory against the same",
            metric="memory",
            of="Loom",
            against="asyncio and pydantic",
            at_most=1.3,
        ),
    ),
)
