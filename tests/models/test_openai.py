"""The OpenAI-compatible model: the real SDK against a local server that speaks the wire format."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from loom.errors import (
    DeadlineExceeded,
    Denied,
    Exhausted,
    InvalidParams,
    LoomError,
    NotFound,
    ProviderUnavailable,
    ToolParseError,
    Unauthenticated,
)
from loom.models.openai import OpenAIModel
from loom.protocols import Model
from tests.tools.local_http import Request, Response, Server, as_json, completion, serving

SECRET = "sk-a-secret-key"
DOCUMENTS = ["Queues\nA queue holds things.", "Lists\nA list is sorted."]


def events(pieces: Sequence[str], *, done: bool = True) -> bytes:
    chunks: list[Any] = [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "small",
            "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}],
        }
        for piece in pieces
    ]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


@asynccontextmanager
async def model_at(
    answer: Response | Callable[[Request], Response], *, timeout: float = 5.0
) -> AsyncGenerator[tuple[OpenAIModel, Server], None]:
    def reply(request: Request) -> Response:
        return answer(request) if callable(answer) else answer

    async with serving(reply) as server:
        model = OpenAIModel(
            api_key=SECRET, model="small", base_url=f"{server.url}/v1", timeout=timeout
        )
        try:
            yield model, server
        finally:
            await model.aclose()


def test_it_is_a_model() -> None:
    model: Model = OpenAIModel(api_key=SECRET)
    assert SECRET not in repr(model)


async def test_a_local_server_is_asked_with_key_model_and_numbered_documents() -> None:
    async with model_at(completion("A queue holds things [1].")) as (model, server):
        answer = await model.generate(
            "What is a queue?", system="Be short.", context=DOCUMENTS, max_tokens=50, temperature=0
        )
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    sent = request.json()
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("small", 50, 0)
    system, user = sent["messages"]
    assert system["content"].startswith("Be short.")
    assert "[1] Queues\nA queue holds things." in user["content"]
    assert "[2] Lists" in user["content"]
    assert user["content"].endswith("Question: What is a queue?")
    assert answer.text == "A queue holds things [1]."
    assert answer.sources == [0]
    assert (answer.model, answer.provider) == ("small-2026-01-01", "openai-compatible")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (12, 7)
    assert (answer.finish_reason, answer.fallback) == ("stop", False)


async def test_a_refusal_is_told_as_one() -> None:
    async with model_at(completion(None, refusal="I will not.")) as (model, _):
        answer = await model.generate("Do harm.")
    assert (answer.text, answer.finish_reason) == ("I will not.", "refusal")


# -- structured answers ----------------------------------------------------------------------------


class City(BaseModel):
    name: str
    people: int


@dataclass(frozen=True)
class Pair:
    left: City
    right: City | None = None


async def test_a_model_is_asked_for_by_its_schema_and_read_back() -> None:
    async with model_at(completion('{"name": "Berlin", "people": 3700000}')) as (model, server):
        answer = await model.generate("Which city?", returns=City)
    assert answer.data == City(name="Berlin", people=3_700_000)
    asked = server.requests[0].json()["response_format"]
    assert asked["type"] == "json_schema"
    assert (asked["json_schema"]["name"], asked["json_schema"]["strict"]) == ("City", True)
    assert asked["json_schema"]["schema"]["additionalProperties"] is False


async def test_a_dataclass_with_defaults_is_asked_for_without_strict_mode() -> None:
    async with model_at(completion('{"left": {"name": "Bonn", "people": 3}}')) as (model, server):
        answer = await model.generate("Which?", returns=Pair)
    assert answer.data == Pair(City(name="Bonn", people=3))
    assert server.requests[0].json()["response_format"]["json_schema"]["strict"] is False


async def test_what_is_no_object_travels_in_one() -> None:
    async with model_at(completion('{"value": [{"name": "Bonn", "people": 3}]}')) as (
        model,
        server,
    ):
        answer = await model.generate("Which?", returns=list[City])
    assert answer.data == [City(name="Bonn", people=3)]
    schema = server.requests[0].json()["response_format"]["json_schema"]["schema"]
    assert schema["type"] == "object"
    assert schema["properties"]["value"]["type"] == "array"
    assert "City" in schema["$defs"]


@pytest.mark.parametrize(
    "text", ["", "no json", '{"name": "Berlin"}', '{"name": "B", "people": "x"}']
)
async def test_an_answer_that_does_not_fit_is_a_parse_error(text: str) -> None:
    async with model_at(completion(text)) as (model, _):
        with pytest.raises(ToolParseError) as refused:
            await model.generate("Which city?", returns=City)
    assert refused.value.retry


async def test_an_answer_that_was_cut_says_what_to_raise() -> None:
    async with model_at(completion('{"name": "Ber', reason="length")) as (model, _):
        with pytest.raises(ToolParseError) as refused:
            await model.generate("Which city?", returns=City)
    assert refused.value.hint is not None
    assert "max_tokens" in refused.value.hint


# -- streams ---------------------------------------------------------------------------------------


async def test_a_stream_gives_pieces_as_the_server_sends_them() -> None:
    answer = Response(events(["A ", "queue", "", "."]), content_type="text/event-stream")
    async with (
        model_at(answer) as (model, server),
        model.stream("What is it?", context=DOCUMENTS) as chunks,
    ):
        pieces = [piece async for piece in chunks]
    assert pieces == ["A ", "queue", "."]
    assert server.requests[0].json()["stream"] is True


async def test_leaving_a_stream_early_closes_the_connection() -> None:
    answer = Response(events(["A "], done=False), content_type="text/event-stream", hold=True)
    async with model_at(answer) as (model, server):
        async with model.stream("What is it?") as chunks:
            assert await anext(chunks) == "A "
        await server.closed_early.wait()


async def test_a_stream_that_is_refused_fails_before_its_first_piece() -> None:
    async with model_at(as_json({"error": {"message": "slow down"}}, 429)) as (model, _):
        with pytest.raises(Exhausted):
            async with model.stream("What is it?"):
                pass


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "retry"),
    [
        (400, InvalidParams, False),
        (401, Unauthenticated, False),
        (403, Denied, False),
        (404, NotFound, False),
        (422, InvalidParams, False),
        (429, Exhausted, True),
        (500, ProviderUnavailable, True),
        (503, ProviderUnavailable, True),
    ],
)
async def test_a_status_becomes_an_error_and_is_not_retried_here(
    status: int, error: type[LoomError], *, retry: bool
) -> None:
    told = {"error": {"message": f"told about {SECRET[:6]}", "type": "t", "code": None}}
    async with model_at(as_json(told, status)) as (model, server):
        with pytest.raises(error) as raised:
            await model.generate("What is it?")
    assert type(raised.value) is error
    assert raised.value.retry is retry
    assert len(server.requests) == 1


async def test_a_key_is_in_no_error() -> None:
    told = as_json({"error": {"message": f"Incorrect API key provided: {SECRET}"}}, 401)
    async with model_at(told) as (model, _):
        with pytest.raises(Unauthenticated) as raised:
            await model.generate("What is it?")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        as_json({"choices": []}),
        as_json({"hello": "world"}),
        Response(b"<html>not here</html>", content_type="text/html"),
    ],
    ids=["no choice", "another shape", "a web page"],
)
async def test_a_server_that_speaks_something_else_is_unavailable(answer: Response) -> None:
    async with model_at(answer) as (model, _):
        with pytest.raises(ProviderUnavailable):
            await model.generate("What is it?")


async def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    async with model_at(Response(b"", hold=True), timeout=0.1) as (model, _):
        with pytest.raises(DeadlineExceeded) as raised:
            await model.generate("What is it?")
    assert isinstance(raised.value, TimeoutError)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with model_at(completion("")) as (model, _):
        pass
    with pytest.raises(ProviderUnavailable) as raised:
        await model.generate("What is it?")
    assert raised.value.retry
    await model.aclose()


async def test_a_call_that_is_cancelled_closes_its_connection() -> None:
    async with model_at(Response(b"", hold=True)) as (model, server):
        asked = asyncio.ensure_future(model.generate("What is it?"))
        await server.arrived.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await server.closed_early.wait()


def test_one_model_serves_two_loops_in_turn() -> None:
    async def ask(url: str) -> str:
        model = OpenAIModel(api_key=SECRET, model="small", base_url=url)
        first = (await model.generate("One?")).text
        await model.aclose()
        second = (await model.generate("Two?")).text
        await model.aclose()
        return first + second

    async def main() -> str:
        async with serving(lambda _: completion("yes")) as server:
            return await ask(f"{server.url}/v1")

    assert asyncio.run(main()) == asyncio.run(main()) == "yesyes"


async def test_what_is_no_text_is_refused_before_anything_is_asked() -> None:
    model = OpenAIModel(api_key="sk-local", base_url="http://127.0.0.1:9/v1")
    wrong: Any = 3
    with pytest.raises(InvalidParams) as refused:
        await model.generate(wrong)
    assert refused.value.field == "prompt"
    with pytest.raises(InvalidParams) as refused:
        async with model.stream("What is it?", context="one document"):
            pass
    assert refused.value.field == "context"
