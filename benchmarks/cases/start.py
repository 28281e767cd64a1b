"""``import loom; loom.App("x")`` as a whole process."""

from functools import partial

from benchmarks.model import Case, Side, Target
from benchmarks.peers.processes import measure_program

_LOOM = "import loom; loom.App('x')"
_PEER = "import asyncio; from pydantic import BaseModel, TypeAdapter"

CASE = Case(
    name="start",
    title='import loom; loom.App("x")',
    sides=(
        Side(name="Loom", run=partial(measure_program, program=_LOOM), count=8),
        Side(name="asyncio and pydantic", run=partial(measure_program, program=_PEER), count=8),
        Side(name="an empty program", run=partial(measure_program, program=""), count=8),
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
