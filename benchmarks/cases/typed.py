"""emit of a Pydantic model → a handler typed ``Event[Model]``: validated on arrival."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

import loom
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import queue
from benchmarks.workload import EVENT, Tally, measure_rate


class Reading(BaseModel):
    """The event as a model."""

    sensor: str
    sequence: int
    celsius: float
    note: str


def emit_model(count: int) -> Sample:
    """The sender emits a model."""
    return asyncio.run(_emit(count, Reading.model_validate(EVENT)))


def emit_mapping(count: int) -> Sample:
    """The sender emits a dict."""
    return asyncio.run(_emit(count, EVENT))


async def _emit(count: int, data: Reading | Mapping[str, Any]) -> Sample:
    app = loom.App("bench")
    tally = Tally(0)

    @app.agent("listener", topics=["readings.>"])
    async def listen(ctx: loom.Context, event: loom.Event[Reading]) -> None:
        tally.value = event.data.sequence
        tally.seen += 1
        if tally.seen == tally.total:
            tally.done.set()

    async with app.running() as ctx:

        async def send(number: int) -> None:
            for _ in range(number):
                await ctx.emit("readings.hall", data)

        return await measure_rate(count, tally, send)


CASE = Case(
    name="typed",
    title="emit → a handler typed Event[Model]",
    sides=(
        Side(name="Loom", run=emit_model, count=150_000),
        Side(name="Loom, emitted as a dict", run=emit_mapping, count=150_000),
        Side(name="asyncio.Queue(1024), bare", run=queue.hand_off, count=400_000),
    ),
    targets=(
        Target(
            name="typed-queue",
            promise="emit of a model → Event[Model] against a bare asyncio.Queue(1024) hand-off",
            metric="rate",
            of="Loom",
            against="asyncio.Queue(1024), bare",
            at_least=0.25,
        ),
    ),
)
