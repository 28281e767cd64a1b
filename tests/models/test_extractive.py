"""The extractive model: it quotes what answers, cites it, and says when nothing does."""

import re
from typing import Any

import pytest
from pydantic import BaseModel

from loom.errors import InvalidParams, NotSupported
from loom.models import ExtractiveModel
from loom.models.base import cited, title_and_body
from loom.models.extractive import NOTHING_FOUND
from loom.models.ranking import SENTENCES_PER_QUESTION, SENTENCES_READ, sentences
from loom.models.words import stems
from loom.protocols import Model

QUEUE = (
    "asyncio.Queue\n"
    "A queue, useful for coordinating producer and consumer coroutines.\n"
    "If maxsize is less than or equal to zero, the queue size is infinite. It is zero by default."
)
LIST = (
    "list.sort\n"
    "Sort the list in ascending order and return None. The sort is stable (i.e. in place)."
)
RAIN = "The weather in Seattle\nThe weather in Seattle on 2015-06-01: 4.6 mm of precipitation."
MODEL = ExtractiveModel()


async def text_of(prompt: str, *context: str) -> str:
    return (await MODEL.generate(prompt, context=context)).text


@pytest.mark.requirement("MODEL-OFFLINE")
async def test_an_answer_is_labelled_quoted_and_cited() -> None:
    answer = await MODEL.generate("What is an asyncio queue?", context=[LIST, QUEUE])
    assert answer.provider == answer.model == "extractive (offline)"
    assert answer.text.startswith(
        "asyncio.Queue: A queue, useful for coordinating producer and consumer coroutines. [2]"
    )
    assert answer.sources == [1]
    assert answer.finish_reason == "stop"
    assert (answer.usage.input_tokens, answer.fallback, answer.data) == (0, False, None)


@pytest.mark.requirement("MODEL-OFFLINE")
async def test_every_sentence_of_an_answer_stands_in_its_context() -> None:
    text = await text_of(
        "What is an asyncio queue, and how was the weather in Seattle?", QUEUE, RAIN
    )
    quotes = re.split(r" \[\d\]\s*", text.replace("asyncio.Queue: ", ""))
    assert len(quotes) > 2
    for quote in quotes:
        assert any(quote in document for document in (QUEUE, RAIN))


async def test_each_question_of_a_prompt_gets_its_own_paragraph() -> None:
    text = await text_of(
        "What is an asyncio queue, and how was the weather in Seattle?", QUEUE, RAIN
    )
    first, second = text.split("\n\n")
    assert first.endswith("[1]")
    assert second == "The weather in Seattle on 2015-06-01: 4.6 mm of precipitation. [2]"


@pytest.mark.parametrize("context", [(), (LIST,), ("",), ("one line without a title",)])
async def test_where_the_context_has_no_answer_it_says_so(context: tuple[str, ...]) -> None:
    answer = await MODEL.generate("Who won the cup in 1998?", context=context)
    assert (answer.text, answer.finish_reason, answer.sources) == (
        NOTHING_FOUND,
        "nothing_found",
        [],
    )


@pytest.mark.parametrize("prompt", ["", "?", "what is it", "[1] [2]", "((((", "?" * 5_000])
async def test_a_prompt_without_a_question_has_no_answer(prompt: str) -> None:
    assert await text_of(prompt, LIST) == NOTHING_FOUND


async def test_the_same_question_has_the_same_answer() -> None:
    answers = {await text_of("How do I sort a list?", LIST, QUEUE) for _ in range(3)}
    assert len(answers) == 1


async def test_sentences_are_not_cut_at_abbreviations() -> None:
    assert "The sort is stable (i.e. in place). [1]" in await text_of("How do I sort a list?", LIST)


async def test_an_answer_has_a_few_sentences_however_long_the_context() -> None:
    context = "Queues\n" + "\n".join(f"A queue of kind {n} holds {n} things." for n in range(200))
    assert 1 <= (await text_of("What is a queue?", context)).count("[1]") <= SENTENCES_PER_QUESTION


async def test_what_does_not_fit_max_tokens_is_left_out_in_whole_sentences() -> None:
    answer = await MODEL.generate("What is an asyncio queue?", context=[QUEUE], max_tokens=12)
    assert answer.finish_reason == "length"
    assert answer.text.count("[1]") == 1


async def test_a_stream_gives_the_same_text_sentence_by_sentence() -> None:
    prompt = "What is an asyncio queue, and how was the weather in Seattle?"
    async with MODEL.stream(prompt, context=[QUEUE, RAIN]) as chunks:
        pieces = [piece async for piece in chunks]
    assert len(pieces) > 1
    assert "".join(pieces) == await text_of(prompt, QUEUE, RAIN)


class Quotes(BaseModel):
    summary: str
    points: list[str]


class Verdict(BaseModel):
    stable: bool


async def test_a_structured_answer_is_given_where_quotes_can_fill_it() -> None:
    answer = await MODEL.generate("How do I sort a list?", context=[LIST], returns=Quotes)
    assert answer.data.summary == " ".join(answer.data.points)
    assert answer.data.points[0].endswith("[1]")
    points = await MODEL.generate("How do I sort a list?", context=[LIST], returns=list[str])
    assert points.data == answer.data.points


@pytest.mark.parametrize("returns", [Verdict, int, dict[str, str]])
async def test_a_structured_answer_that_needs_more_than_quotes_is_refused(
    returns: type[object],
) -> None:
    with pytest.raises(NotSupported) as refused:
        await MODEL.generate("Is sorting stable?", context=[LIST], returns=returns)
    assert refused.value.hint is not None


async def test_without_context_there_is_nothing_to_fill_a_structure_with() -> None:
    with pytest.raises(NotSupported) as refused:
        await MODEL.generate("How do I sort a list?", returns=Quotes)
    assert refused.value.field == "context"


@pytest.mark.parametrize(
    ("prompt", "context", "field"),
    [
        (3, [LIST], "prompt"),
        (None, [LIST], "prompt"),
        ("What is a list?", LIST, "context"),
        ("What is a list?", None, "context"),
        ("What is a list?", [LIST, 3], "context.1"),
    ],
)
async def test_what_is_no_text_is_refused_by_name(prompt: Any, context: Any, field: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        await MODEL.generate(prompt, context=context)
    assert refused.value.field == field
    assert refused.value.hint is not None


def test_it_is_a_model() -> None:
    model: Model = MODEL
    assert model.name == "extractive (offline)"


def test_citations_are_read_back_as_indices() -> None:
    assert cited("First [2]. Then [1], again [2]; not [3] or [0].", ["a", "b"]) == [1, 0]


def test_the_first_line_of_a_document_is_its_title() -> None:
    assert title_and_body("A title\nand a body\n") == ("A title", "and a body")
    assert title_and_body("only a body") == ("", "only a body")


def test_forms_of_a_word_share_a_stem() -> None:
    assert stems("queues queue") == ["queu", "queu"]
    assert set(stems("sorting sorted sorts")) == {"sort"}
    assert stems("What is it, and how does it work?") == []


@pytest.mark.parametrize("asked", ["How much did it rain", "Was it windy", "How hot was it"])
async def test_a_part_of_the_weather_is_answered_by_the_weather(asked: str) -> None:
    assert await text_of(f"{asked} in Seattle on Monday?", QUEUE, RAIN) == (
        "The weather in Seattle on 2015-06-01: 4.6 mm of precipitation. [2]"
    )


async def test_a_quote_keeps_its_closing_quotation_mark() -> None:
    context = 'Queues\nA queue is "first in, first out." A queue is also a line of people.'
    assert 'A queue is "first in, first out." [1]' in await text_of("What is a queue?", context)


async def test_a_context_without_end_is_read_in_part() -> None:
    context = "Queues\n" + "A queue of things is here. " * (2 * SENTENCES_READ)
    assert "[1]" in await text_of("What is a queue?", context)
    assert len(sentences([context])) == SENTENCES_READ


async def test_a_name_is_recognised_when_its_parts_are_asked_for() -> None:
    context = "typing.NamedTuple\nTyped version of what is in collections."
    assert await text_of("What is a named tuple?", context) == (
        "typing.NamedTuple: Typed version of what is in collections. [1]"
    )
