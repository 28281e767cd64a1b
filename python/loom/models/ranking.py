"""Which sentences of some documents answer a question: scores and a choice, deterministic.

A sentence scores by how much of the question it and its document's title speak of, rare words
counting more, and by its place; the choice is by maximal marginal relevance, so that sentences do
not repeat each other.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loom.models.base import title_and_body
from loom.models.words import stems, widened

SENTENCES_PER_QUESTION: Final = 4

SENTENCES_READ: Final = 5 * 1_000
"""Sentences of the context that are looked at, the first ones."""

# of what a question asks for, by weight: what a sentence with its title, and alone, must speak of
_RELEVANT: Final = 0.67
_GROUNDED: Final = 0.3

_FLOOR: Final = 0.6  # of the best score: what is below is no answer
_REDUNDANCY: Final = 0.6
_GAIN: Final = 0.1
_CENTRALITY: Final = 0.15
_WORDS: Final = range(3, 60)
_JOINED_CHARACTERS: Final = 8

_ENDS: Final = (".", "!", "?", ")", '"', "”")
_BOUNDARY: Final = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][)\"”']))\s+(?=[A-Z\"“'(`])")
_ABBREVIATION: Final = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|a\.k\.a|Dr|Mr|Ms|No)|\b[A-Z])\.$"
)
_DANGLING: Final = re.compile(  # says something about a sentence that may not be there
    r"(?:they|it|this|that|these|those|such|we|our|however|for instance|for example|note|also"
    r"|thus|therefore|but|then|see|is|are|returns true)\b",
    re.IGNORECASE,
)
_NEXT_QUESTION: Final = re.compile(
    r"[?;]\s*(?:and\s+)?|,?\s+and\s+"
    r"(?=(?:what|how|why|when|where|who|which|is|are|was|were|does|do|did|can)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a context document, word for word.

    ``name`` is what the document is about, as its title names it; ``title`` has the title's stems.
    """

    document: int
    position: int
    text: str
    words: frozenset[str]
    name: str
    title: frozenset[str]


def questions(prompt: str) -> list[str]:
    """Return the questions that a prompt consists of."""
    parts = [part.strip() for part in _NEXT_QUESTION.split(prompt)]
    return [part for part in parts if stems(part)]


def sentences(context: Sequence[str]) -> list[Sentence]:
    """Return the whole sentences of the documents, at most ``SENTENCES_READ``."""
    found: list[Sentence] = []
    for number, document in enumerate(context):
        for sentence in _of_document(number, document):
            if len(found) == SENTENCES_READ:
                return found
            found.append(sentence)
    return found


def best(question: str, candidates: Sequence[Sentence]) -> list[Sentence]:
    """Return the sentences that answer ``question``, those of one document together.

    Documents come in the order of their best sentence; nothing that answers is an empty list.
    """
    weights = _Weights(candidates)
    asked = frozenset(stems(question))
    scored = {
        one: score for one in candidates if (score := _score(question, asked, one, weights)) > 0
    }
    ranks = {number: rank for rank, number in enumerate(sorted({one.document for one in scored}))}
    for one in scored:  # documents are given best first
        scored[one] += 0.3 / (1 + ranks[one.document])
    picked = _diverse(scored, weights)
    first = {one.document: n for n, one in reversed(list(enumerate(picked)))}
    return sorted(picked, key=lambda one: (first[one.document], one.position))


def _of_document(number: int, document: str) -> Iterator[Sentence]:
    title, body = title_and_body(document)
    titled = frozenset(stem for stem in stems(title) if not stem.isdigit())
    name = re.sub(r" \d.*$", "", title).casefold().removeprefix("the ")
    texts = [text for paragraph in body.splitlines() for text in _split(paragraph)]
    for position, text in enumerate(texts):
        words = frozenset(stems(text))
        whole = text.endswith(_ENDS) or (position == 0 and text[-1].isalnum())
        if words and whole and len(text.split()) in _WORDS:
            yield Sentence(number, position, text, words, name, titled)


def _split(paragraph: str) -> Iterator[str]:
    held = ""
    for part in _BOUNDARY.split(paragraph.strip()):
        held = f"{held} {part}".strip()
        if held and not _ABBREVIATION.search(held):
            yield held
            held = ""
    if held:
        yield held


class _Weights:
    """Inverse document frequency of words over the context, titles included."""

    def __init__(self, candidates: Sequence[Sentence]) -> None:
        holding: dict[str, set[int]] = {}
        for one in candidates:
            for word in one.words | one.title:
                holding.setdefault(word, set()).add(one.document)
        self._documents = len({one.document for one in candidates})
        self._weights = {word: self._weight(len(where)) for word, where in holding.items()}

    def of(self, word: str) -> float:
        return self._weights.get(word, self._weight(0))

    def sum(self, words: frozenset[str]) -> float:
        return math.fsum(map(self.of, words))  # exact, so the order of a set does not matter

    def _weight(self, holding: int) -> float:
        return math.log(1 + (self._documents + 1) / (holding + 0.5))


def _score(question: str, asked: frozenset[str], one: Sentence, weights: _Weights) -> float:
    """Return how well a sentence answers, 0 where it does not.

    A document that the question names is meant: its first sentence answers whatever words it has.
    """
    total = weights.sum(asked)
    if not total:
        return 0.0
    alone = weights.sum(asked & one.words) / total
    titled = weights.sum(asked & one.title) / total
    together = weights.sum(asked & (one.words | one.title)) / total
    exact = len(widened(asked) & one.title) / max(1, len(one.title))
    meant = exact == 1.0 or _names(question, one.name)
    leads = one.position == 0
    relevant = together >= _RELEVANT and alone >= _GROUNDED
    if not relevant and not (meant and (alone > 0 or leads)):
        return 0.0
    score = 0.5 * alone + 0.4 * titled * exact + 0.3 * (0.3 + 0.7 * titled) / (1 + one.position)
    if meant:
        score += 0.8 if leads else 0.3
    if _DANGLING.match(one.text):
        score -= 0.4
    return max(score, 0.01)


def _names(question: str, name: str) -> bool:
    """Tell whether the question has the name, or the end of it in parts: "named tuple"."""
    if not name:
        return False
    asked = question.casefold()
    last = name.rpartition(".")[2]
    apart = len(last) >= _JOINED_CHARACTERS and last not in asked
    return (apart and last in re.sub(r"\s", "", asked)) or re.search(
        rf"\b{re.escape(name)}\b", asked
    ) is not None


def _diverse(scored: Mapping[Sentence, float], weights: _Weights) -> list[Sentence]:
    vectors = {one: {word: weights.of(word) for word in sorted(one.words)} for one in scored}
    centre: dict[str, float] = {}
    for vector in vectors.values():
        for word, weight in vector.items():
            centre[word] = centre.get(word, 0.0) + weight
    score = {
        one: value + _CENTRALITY * _cosine(vectors[one], centre) for one, value in scored.items()
    }
    floor = _FLOOR * max(score.values(), default=0.0)
    left = [one for one in score if score[one] >= floor]
    repeated = dict.fromkeys(left, 0.0)
    picked: list[Sentence] = []
    while left and len(picked) < SENTENCES_PER_QUESTION:
        chosen = max(left, key=lambda one: score[one] - _REDUNDANCY * repeated[one])
        if picked and score[chosen] - _REDUNDANCY * repeated[chosen] <= _GAIN:
            break
        picked.append(chosen)
        left.remove(chosen)
        for one in left:
            repeated[one] = max(repeated[one], _cosine(vectors[one], vectors[chosen]))
    return picked


def _cosine(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    dot = math.fsum(value * right.get(word, 0.0) for word, value in left.items())
    norm = math.hypot(*left.values()) * math.hypot(*right.values())
    return dot / norm if norm else 0.0
