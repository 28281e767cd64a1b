"""Words of English: which say nothing about what a text is about, and which are forms of one."""

import re
from typing import Final

_COMMON: Final = """
a about all an and any are as at be been between but by can compare could describe did difference
do does explain for from give had has have how i if in into is it its like may me mean means might
more most my no not of on one or our please purpose python should so some such tell than that the
their them then there these they this those to two up use used uses using was way we were what
whats when where which who why will with work works would you your
"""
COMMON: Final = frozenset(_COMMON.split())
"""Words that questions are made of, rather than what they ask for."""

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD: Final = re.compile(r"[^\W_]+")
_ENDINGS: Final = (
    *("ations", "ation", "ingly", "ings", "ing", "edly", "ies", "ied", "ers", "er", "ed", "es"),
    *("s", "e", "y"),
)
_STEM_CHARACTERS: Final = 4
_PARTS_OF_THE_WEATHER: Final = """
cloudy cold degrees dry forecast hot precipitation rain rainfall snow snowfall stormy sunny
temperature warm wet wind
"""


def stems(text: str) -> list[str]:
    """Return the stems of the telling words of ``text``; parts of names count as words."""
    words = _WORD.findall(_CAMEL.sub(" ", text).casefold())
    return [_stem(word) for word in words if word not in COMMON]


def widened(words: frozenset[str]) -> frozenset[str]:
    """Return the stems with what they ask for a part of: who asks for rain asks for the weather."""
    return words | _WEATHER if words & _ITS_PARTS else words


def _stem(word: str) -> str:
    """Cut a common ending. Rough on purpose: both sides of a comparison are cut the same way."""
    if not word.endswith("ss"):
        for ending in _ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= _STEM_CHARACTERS:
                return word.removesuffix(ending)
    return word


_WEATHER: Final = frozenset(stems("weather"))
_ITS_PARTS: Final = frozenset(stems(_PARTS_OF_THE_WEATHER))
