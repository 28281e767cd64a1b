"""Topics and payloads, against readings of their grammar by brute force."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from loom.codec import decode, encode
from loom.errors import CODES, InvalidParams, LoomError, error_from_code
from loom.topics import check_filter, matches

tokens = st.sampled_from(["a", "b", "c1", "D_d-"])
topics = st.lists(tokens, min_size=1, max_size=5).map(".".join)
filters = st.tuples(
    st.lists(st.one_of(tokens, st.just("*")), min_size=0, max_size=4), st.booleans()
).map(lambda parts: ".".join([*parts[0], *([">"] if parts[1] or not parts[0] else [])]))


def reads(pattern: list[str], topic: list[str]) -> bool:
    if not pattern:
        return not topic
    if pattern == [">"]:
        return bool(topic)
    return bool(topic) and pattern[0] in ("*", topic[0]) and reads(pattern[1:], topic[1:])


@pytest.mark.requirement("TOPIC-MATCH")
@given(filters, topics)
def test_a_filter_matches_as_its_grammar_reads(pattern: str, topic: str) -> None:
    assert check_filter(pattern) == pattern
    assert matches(pattern, topic) == reads(pattern.split("."), topic.split("."))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_what_is_encoded_comes_back(value: Any) -> None:
    assert decode(encode(value)) == value
    assert json.loads(encode(value)) == value


@given(values, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_number_that_is_not_finite_is_found_anywhere(value: Any, bad: float) -> None:
    for wrong in (
        [value, bad],
        {"a": value, "b": [value, {"c": bad}]},
        Pair(left=value, right=bad),
    ):
        with pytest.raises(InvalidParams, match="not a finite number"):
            encode(wrong)


@dataclass
class Pair:
    left: Any
    right: Any


class Model(BaseModel):
    when: datetime
    pair: Pair
    optional: float | None = None


def test_models_dataclasses_and_bytes_have_their_payloads() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    model = Model(when=when, pair=Pair(1, None))
    assert decode(encode([model, Pair(1, 2)])) == [
        {"when": "2026-01-02T00:00:00Z", "pair": {"left": 1, "right": None}, "optional": None},
        {"left": 1, "right": 2},
    ]
    assert encode(b"\x00\xff") == b"\x00\xff"
    with pytest.raises(InvalidParams):
        encode(Model(when=when, pair=Pair(1, None), optional=math.nan))


@pytest.mark.requirement("ERRORS-CLOSED")
@pytest.mark.parametrize("code", CODES)
def test_every_code_has_one_class_and_maps_both_ways(code: str) -> None:
    error = error_from_code(CODES[code], "what", field="f", limit="l", hint="h", who="w")
    assert isinstance(error, LoomError)
    assert error.code == code == type(error).CODE
    assert (error.field, error.limit, error.hint, error.who) == ("f", "l", "h", "w")
    assert isinstance(error, TimeoutError) == (code == "TIMEOUT")


class Strange(BaseModel):
    """A model that has no JSON Schema."""

    when: Callable[[], int] | None = None


def test_a_model_without_a_schema_is_written_all_the_same() -> None:
    for _ in range(2):
        assert decode(encode(Strange())) == {"when": None}
