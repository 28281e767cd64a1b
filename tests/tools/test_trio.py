"""The trio, whole: events, calls and an answer with its sources."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from examples.trio import app as trio
from loom.models import ExtractiveModel
from loom.testing import Harness, ScriptedModel
from loom.tools import weather, web
from loom.tools.documents import PYTHON_DOCS, Document
from loom.tools.library import LocalLibrary
from loom.tools.weather import KeptObservations
from tests.tools.local_http import Request, Response, completion, serving

QUEUE = Document(
    "python:asyncio.Queue",
    "asyncio.Queue",
    PYTHON_DOCS,
    ["A queue, useful for coordinating producer and consumer coroutines."],
)


@pytest.fixture(autouse=True)
async def no_network(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None, None]:
    library = LocalLibrary(corpus=lambda: [QUEUE])
    monkeypatch.setattr(web, "provider", library)
    monkeypatch.setattr(weather, "provider", KeptObservations())
    yield
    await library.aclose()


@pytest.mark.requirement("TRIO-ANSWERS")
async def test_the_trio_answers_its_question_without_network_or_key() -> None:
    async with Harness(trio.app, model=ExtractiveModel()) as h:
        answer = await trio.main(h.ctx, [])
        await h.idle()
        topics = {event.topic for event in h.events(">")}
    assert "useful for coordinating producer and consumer coroutines. [1]" in answer.text
    assert "4.6 mm of precipitation" in answer.text
    assert "python:asyncio.Queue" in answer.sources[0]
    assert "NOAA" in answer.sources[1]
    assert answer.model == "extractive (offline)"
    assert topics >= {
        "question.asked",
        "research.search",
        "research.weather",
        "draft.wanted",
        "answer.ready",
    }


async def test_a_model_that_can_plan_plans() -> None:
    plan = trio.Plan(searches=[trio.Search(query="queue")], weather=[])
    model = ScriptedModel([plan, "A queue coordinates coroutines."])
    async with Harness(trio.app, model=model) as h:
        answer = await trio.main(h.ctx, ["How do coroutines", "wait for each other?"])
        assert h.calls("web.search") == 1
        assert h.calls("weather.get") == 0
    assert answer.text == "A queue coordinates coroutines."
    planned, written = model.prompts
    assert planned.prompt == "How do coroutines wait for each other?"
    assert written.context == (f"asyncio.Queue\n{QUEUE.paragraphs[0]}",)


async def test_what_nobody_knows_is_said_and_not_invented() -> None:
    async with Harness(trio.app, model=ExtractiveModel()) as h:
        answer = await trio.main(h.ctx, ["How is the weather in Berlin?"])
    assert "Nothing in the sources" in answer.text
    assert "Berlin" in answer.missing[0]
    assert "Seattle" in answer.missing[0]
    assert answer.sources == []


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("How much did it rain in Seattle on 2012-01-02?", "10.9 mm of precipitation"),
        ("Did it rain in Seattle on 2013-11-11?", "no precipitation (rain or snow)"),
        ("How hot did it get in seattle on July 4, 2014?", "on 2014-07-04: temperatures"),
        ("What was the wind like in Seattle on 12/25/2014?", "on 2014-12-25: temperatures"),
    ],
)
async def test_a_question_about_the_weather_is_answered_from_the_observation(
    question: str, told: str
) -> None:
    async with Harness(trio.app, model=ExtractiveModel()) as h:
        answer = await trio.main(h.ctx, [question])
    assert told in answer.text
    assert (len(answer.sources), answer.missing) == (1, [])


@pytest.mark.parametrize(
    ("date", "told"),
    [
        ("on Christmas 2014", "No weather: the date 'Christmas 2014' is not understood"),
        ("last week", "No weather: the date 'last week' is not understood"),
        ("on 2014-02-30", "No weather: there is no day 2014-02-30"),
    ],
)
async def test_a_day_that_is_not_understood_is_said_and_not_replaced(date: str, told: str) -> None:
    async with Harness(trio.app, model=ExtractiveModel()) as h:
        answer = await trio.main(h.ctx, [f"Did it rain in Seattle {date}?"])
    assert answer.missing == [f"{told} (write it as YYYY-MM-DD)."]
    assert answer.sources == []


@pytest.mark.requirement("MODEL-SWITCH")
async def test_a_key_in_the_environment_alone_lets_a_model_plan_and_write(tmp_path: Path) -> None:
    def answer(request: Request) -> Response:
        if "response_format" in request.json():
            place = {"place": "Seattle", "date": "2015-06-01"}
            return completion(json.dumps({"searches": [], "weather": [place]}))
        return completion("It rained a little [1].")

    async with serving(answer) as server:
        told = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loom", "run", "--quiet", trio.__file__, "--", "Any rain?"),
            env={
                **os.environ,
                "LOOM_HOME": str(tmp_path),
                "OPENAI_API_KEY": "sk-local",
                "OPENAI_BASE_URL": f"{server.url}/v1",
                "OPENAI_MODEL": "small",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await told.communicate()
    assert told.returncode == 0, err.decode()
    assert "It rained a little [1]." in out.decode()
    assert "Written by small-2026-01-01" in out.decode()
    assert [request.json()["model"] for request in server.requests] == ["small", "small"]
    assert "4.6 mm" in server.requests[1].json()["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("question", "searches", "places"),
    [
        ("What is a lambda?", ["What is a lambda"], []),
        (
            "What is a queue, and what is a lock?",
            ["What is a queue", "what is a lock"],
            [],
        ),
        ("Was it cold in New York on 2014-01-02?", [], [("New York", "2014-01-02")]),
        ("How is the weather", ["How is the weather"], []),
    ],
)
def test_rules_split_a_question_into_searches_and_places(
    question: str, searches: list[str], places: list[tuple[str, str | None]]
) -> None:
    plan = trio.plan_by_rules(question)
    assert [search.query for search in plan.searches] == searches
    assert [(outside.place, outside.date) for outside in plan.weather] == places
