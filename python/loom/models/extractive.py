"""The model for when there is none: it answers by quoting its context, with sources.

An extractive summariser, deterministic and without weights: sentences are ranked by how much of the
question they cover and how central they are among the candidates, and picked so that they do not
repeat each other (maximal marginal relevance). It writes nothing of its own, does no reasoning, and
says so when the context has no answer.
"""

import math
import re
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from loom.errors import NotSupported
from loom.models.base import Answer, cited, title_and_body
from loom.models.words import stems

NOTHING_FOUND: Final = "Nothing in the sources at hand answers this."
SENTENCES_PER_QUESTION: Final = 4

_D = TypeVar("_D")
_RELEVANT: Final = (
    0.67  # of what a question asks for, a sentence and its title must speak of this much
)
_GROUNDED: Final = 0.3  # and the sentence alone of this much
_REDUNDANCY: Final = 0.6
_WORDS: Final = range(3, 60)
_ABBREVIATION: Final = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|a\.k\.a|Dr|Mr|Ms|No)|\b[A-Z])\.$"
)
_DANGLING: Final = re.compile(
    r"(?:they|it|this|that|these|those|such|we|our|however|for instance|for example|note|also"
    r"|thus|therefore|but|then|see|is|are|returns true)\b",
    re.IGNORECASE,
)
_BOUNDARY: Final = re.compile(r"(?<=[.!?])[)\"”']?\s+(?=[A-Z\"“'(`])")
_QUESTION_BOUNDARY: Final = re.compile(
    r"[?;]\s*(?:and\s+)?|,?\s+and\s+"
    r"(?=(?:what|how|why|when|where|who|which|is|are|was|were|does|do|did|can)\b)",
    re.IGNORECASE,
)


class ExtractiveModel:
    """Answers by quoting its context; ``system`` and ``temperature`` have nothing to steer."""

    name = "extractive (offline)"
    provider = "extractive (offline)"

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        returns: None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[None]: ...
    @overload
    async def generate(
        self,
        prompt: str,
        *,
        returns: type[_D],
        system: str | None = None,
        context: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[_D]: ...
    async def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        returns: type[Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[Any]:
        """Answer ``prompt`` with sentences of ``context``.

        A structured answer is possible where all it asks for is quoted text: ``str``,
        ``list[str]``, or a model whose fields are of these two types.

        Raises:
            NotSupported: ``returns`` asks for more than quoting.
        """
        shape = None if returns is None else _quotable(returns, context)
        paragraphs, cut = _within(_answer(prompt, context), max_tokens)
        text = "\n\n".join(" ".join(line.text for line in lines) for lines in paragraphs)
        value: Any = None
        if returns is not None and shape is not None:
            value = _filled(returns, shape, [line.text for lines in paragraphs for line in lines])
        reason = "length" if cut else "stop"
        return Answer(
            text=text or NOTHING_FOUND,
            data=value,
            model=self.name,
            provider=self.provider,
            finish_reason=reason if text else "nothing_found",
            sources=cited(text, context),
        )

    @asynccontextmanager
    async def stream(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> AsyncGenerator[AsyncIterator[str], None]:
        """Answer sentence by sentence."""
        answer = await self.generate(prompt, context=context, max_tokens=max_tokens)

        async def pieces() -> AsyncIterator[str]:
            for piece in re.split(r"(?<=\])(?=\s)", answer.text):
                yield piece

        yield pieces()


@dataclass(frozen=True, slots=True)
class _Sentence:
    document: int
    position: int
    text: str
    words: frozenset[str]
    name: str
    title: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Line:
    """A sentence as it is quoted, with its marker."""

    text: str


def _answer(prompt: str, context: Sequence[str]) -> list[list[_Line]]:
    """Return one paragraph for each question of the prompt that the context answers."""
    candidates = [part for number, text in enumerate(context) for part in _sentences(number, text)]
    taken: set[str] = set()
    paragraphs: list[list[_Line]] = []
    for question in _questions(prompt):
        chosen = [one for one in _chosen(question, candidates) if one.text not in taken]
        taken.update(one.text for one in chosen)
        if chosen:
            paragraphs.append(_quoted(chosen, context))
    return paragraphs


def _questions(prompt: str) -> list[str]:
    parts = [part.strip() for part in _QUESTION_BOUNDARY.split(prompt)]
    return [part for part in parts if stems(part)] or [prompt]


def _sentences(number: int, document: str) -> Iterable[_Sentence]:
    title, body = title_and_body(document)
    titled = frozenset(stem for stem in stems(title) if not stem.isdigit())
    name = re.sub(r" \d.*$", "", title).casefold().removeprefix("the ")
    position = 0
    for paragraph in body.splitlines():
        for text in _split(paragraph):
            words = frozenset(stems(text))
            whole = text.endswith((".", "!", "?", ")")) or (position == 0 and text[-1].isalnum())
            if words and whole and len(text.split()) in _WORDS:
                yield _Sentence(number, position, text, words, name, titled)
            position += 1


def _split(paragraph: str) -> list[str]:
    found: list[str] = []
    held = ""
    for part in _BOUNDARY.split(paragraph.strip()):
        held = f"{held} {part}".strip()
        if not _ABBREVIATION.search(held):
            found.append(held)
            held = ""
    return [*found, held] if held else found


def _chosen(question: str, candidates: Sequence[_Sentence]) -> list[_Sentence]:
    """Return the sentences that answer ``question`` best, in the order of their documents."""
    asked = frozenset(stems(question))
    if not asked:
        return []
    weights = _weights(candidates)
    total = math.fsum(weights.get(word, _unseen(candidates)) for word in asked)
    relevance: dict[int, float] = {}
    for index, one in enumerate(candidates):
        alone = math.fsum(weights[word] for word in asked & one.words) / total
        titled = math.fsum(weights[word] for word in asked & one.title) / total
        together = math.fsum(weights[word] for word in asked & (one.words | one.title)) / total
        exact = len(asked & one.title) / max(1, len(one.title))
        meant = exact == 1.0 or _names(question, one.name)
        if (together >= _RELEVANT and alone >= _GROUNDED) or (
            meant and (alone > 0 or one.position == 0)
        ):
            relevance[index] = (
                0.5 * alone
                + 0.4 * titled * exact
                + 0.3 * (0.3 + 0.7 * titled) / (1 + one.position)
                + (0.3 if meant else 0.0)
                + (0.5 if meant and one.position == 0 else 0.0)
                - (0.4 if _DANGLING.match(one.text) else 0.0)
            )
    ranks = {
        one: rank for rank, one in enumerate(sorted({candidates[i].document for i in relevance}))
    }
    for index in relevance:  # documents come best first
        relevance[index] += 0.3 / (1 + ranks[candidates[index].document])
    if not relevance:
        return []
    picked = _diverse(relevance, candidates, weights)
    return [
        candidates[index] for index in sorted(picked, key=lambda i: _order(i, picked, candidates))
    ]


def _names(question: str, name: str) -> bool:
    return bool(name) and re.search(rf"\b{re.escape(name)}\b", question.casefold()) is not None


def _order(index: int, picked: Sequence[int], candidates: Sequence[_Sentence]) -> tuple[int, int]:
    """Keep sentences of one document together, documents in the order of their best sentence."""
    one = candidates[index]
    first = next(n for n, other in enumerate(picked) if candidates[other].document == one.document)
    return first, one.position


def _diverse(
    relevance: Mapping[int, float], candidates: Sequence[_Sentence], weights: Mapping[str, float]
) -> list[int]:
    """Pick by maximal marginal relevance; what is far below the best is no answer, new or not."""
    vectors = {index: _vector(candidates[index], weights) for index in relevance}
    centre: dict[str, float] = {}
    for vector in vectors.values():
        for word, weight in vector.items():
            centre[word] = centre.get(word, 0.0) + weight
    score = {i: value + 0.15 * _cosine(vectors[i], centre) for i, value in relevance.items()}
    floor = 0.6 * max(score.values())
    left = sorted((i for i in score if score[i] >= floor), key=lambda i: (-score[i], i))
    picked: list[int] = []
    while left and len(picked) < SENTENCES_PER_QUESTION:
        gain = {
            i: score[i]
            - _REDUNDANCY * max((_cosine(vectors[i], vectors[p]) for p in picked), default=0.0)
            for i in left
        }
        best = max(left, key=lambda i: (gain[i], -i))
        if picked and gain[best] <= 0.1:
            break
        picked.append(best)
        left.remove(best)
    return picked


def _weights(candidates: Sequence[_Sentence]) -> dict[str, float]:
    """Return each word's inverse document frequency over the context, titles included."""
    holding: dict[str, set[int]] = {}
    for one in candidates:
        for word in (*one.words, *one.title):
            holding.setdefault(word, set()).add(one.document)
    number = len({one.document for one in candidates})
    return {
        word: math.log(1 + (number + 1) / (len(where) + 0.5)) for word, where in holding.items()
    }


def _unseen(candidates: Sequence[_Sentence]) -> float:
    return math.log(1 + 2 * (len({one.document for one in candidates}) + 1))


def _vector(one: _Sentence, weights: Mapping[str, float]) -> dict[str, float]:
    return {word: weights[word] for word in sorted(one.words)}


def _cosine(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    dot = sum(value * right.get(word, 0.0) for word, value in left.items())
    norm = math.hypot(*left.values()) * math.hypot(*right.values())
    return dot / norm if norm else 0.0


def _quoted(chosen: Sequence[_Sentence], context: Sequence[str]) -> list[_Line]:
    """Return the sentences with their markers, the first of a document with its title, too."""
    lines: list[_Line] = []
    before: int | None = None
    for one in chosen:
        title, _ = title_and_body(context[one.document])
        told = " " in title and frozenset(stems(one.name)) <= one.words
        lead = "" if not title or told or one.document == before else f"{title}: "
        stop = "" if one.text.endswith((".", "!", "?", ".)")) else "."
        lines.append(_Line(f"{lead}{one.text}{stop} [{one.document + 1}]"))
        before = one.document
    return lines


def _within(
    paragraphs: list[list[_Line]], max_tokens: int | None
) -> tuple[list[list[_Line]], bool]:
    """Keep whole sentences while the words of the answer are at most ``max_tokens``."""
    if max_tokens is None:
        return paragraphs, False
    kept: list[list[_Line]] = []
    room = max_tokens
    for lines in paragraphs:
        fitting: list[_Line] = []
        for line in lines:
            room -= len(line.text.split())
            if room < 0:
                return ([*kept, fitting] if fitting else kept), True
            fitting.append(line)
        kept.append(fitting)
    return kept, False


# -- structured answers ----------------------------------------------------------------------------


def _quotable(returns: type[Any], context: Sequence[str]) -> Mapping[str, Any] | Any:
    """Return the fields to fill with quotes, or the type itself where it is text or texts."""
    fields = getattr(returns, "__pydantic_fields__", None)
    if context and (_is_text(returns) or _is_texts(returns)):
        return returns
    if context and fields:
        hints: dict[str, Any] = {name: info.annotation for name, info in fields.items()}
        if all(_is_text(hint) or _is_texts(hint) for hint in hints.values()):
            return hints
    raise NotSupported(
        f"quotes of the context cannot answer as {getattr(returns, '__name__', returns)}",
        field="returns" if context else "context",
        hint="give context, and ask for text or a model of texts; or set OPENAI_API_KEY",
    )


def _is_text(hint: object) -> bool:
    return hint is str


def _is_texts(hint: object) -> bool:
    return typing.get_origin(hint) is list and typing.get_args(hint) == (str,)


def _filled(returns: type[Any], shape: Mapping[str, Any] | Any, quotes: list[str]) -> Any:
    text = " ".join(quotes) or NOTHING_FOUND
    if not isinstance(shape, dict):
        return text if _is_text(shape) else quotes
    hints = typing.cast("dict[str, Any]", shape)
    values = {name: text if _is_text(hint) else quotes for name, hint in hints.items()}
    try:
        return TypeAdapter[Any](returns).validate_python(values)
    except ValidationError as error:
        raise NotSupported(
            f"quotes do not fit {returns.__name__}: {error.errors()[0]['msg']}", field="returns"
        ) from None
