"""A run like the trio's, three agents that ask each other and call a tool, recorded and not."""

import asyncio
import os
from functools import partial
from typing import Any
from unittest import mock

import loom
from benchmarks import disk
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.workload import EVENT, measure_requests

_AT_ONCE = 8
_ON, _OFF = "Loom, runs recorded", "Loom, nothing recorded"


def run(count: int, record: str) -> Sample:
    """Ask the planner, so many times, with a log that records runs or nothing."""
    with mock.patch.dict(os.environ, LOOM_LOG__RECORD=record):
        return asyncio.run(_run(count))


async def _run(count: int) -> Sample:
    app = loom.App("bench")

    @app.capability("shelf.find", effect="pure")
    async def find(place: str) -> dict[str, Any]:
        """Find what there is."""
        return dict(EVENT)

    @app.agent("planner", topics=["question.asked"])
    async def plan(ctx: loom.Context, event: loom.Event[Any]) -> Any:
        found = await ctx.gather(
            *(ctx.request("research", EVENT, key=str(number)) for number in range(2))
        )
        draft = await ctx.request("draft", found[0].data)
        await ctx.emit("answer.ready", draft.data)
        return draft.data

    @app.agent("researcher", topics=["research"])
    async def research(ctx: loom.Context, event: loom.Event[Any]) -> Any:
        return await ctx.tool(find.bind(place=event.data["sensor"]))

    @app.agent("writer", topics=["draft"])
    async def write(ctx: loom.Context, event: loom.Event[Any]) -> Any:
        return event.data

    with disk.directory() as place:
        async with app.running(data=place) as ctx:

            async def ask() -> int:
                return (await ctx.request("question.asked", EVENT)).data["sequence"]

            return await measure_requests(count, _AT_ONCE, ask)


CASE = Case(
    name="recording",
    title="a run of three agents, five turns and two calls, 8 runs at a time",
    sides=(
        Side(name=_ON, run=partial(run, record="runs"), count=1_600),
        Side(name=_OFF, run=partial(run, record="off"), count=1_600),
    ),
    targets=(
        Target(
            name="recording-cost",
            promise="runs a second, recorded, of those with nothing recorded",
            metric="rate",
            of=_ON,
            against=_OFF,
            at_least=0.87,
        ),
    ),
)
