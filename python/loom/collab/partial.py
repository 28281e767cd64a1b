"""Typed partial results, and what a majority is."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import msgspec
from typing_extensions import TypeVar

from loom.checks import check_function, check_list, check_whole
from loom.codec import decode, encode
from loom.errors import InvalidParams, LoomError

T = TypeVar("T", default=Any)
I = TypeVar("I", default=Any)  # noqa: E741  an item


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Generic[T]):
    """What one target of a ``fanout`` gave.

    ``index`` is its place among the targets, ``target`` its topic or its capability's name.
    """

    index: int
    target: str
    data: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One that gave an error.

    Of a ``fanout``: the place and the name of the target. Of a ``fanin``: the place of the filter,
    and the sender of an event whose data does not fit.
    """

    index: int
    target: str
    error: LoomError


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial(Generic[I]):
    """What there was when it was enough, or when time was up.

    ``items`` in the order they came; ``missing`` counts those that gave neither an item nor a
    failure; ``timed_out`` says whether time was up before it was enough.
    """

    items: list[I]
    failures: list[Failure]
    missing: int
    timed_out: bool


class Poll:
    """Counts votes of at most ``of`` voters until more than half of them agree."""

    def __init__(self, of: int) -> None:
        check_whole(of, "of", None)
        self._of = of
        self._votes: Counter[Hashable] = Counter()
        self._first: dict[Hashable, int] = {}
        self._spoilt = 0
        self.winner: int | None = None

    def vote(self, key: Hashable) -> None:
        """Count one vote. ``winner`` is the number of the first vote of those that agree."""
        self._first.setdefault(key, self._votes.total())
        self._votes[key] += 1
        if self._votes[key] * 2 > self._of and self.winner is None:
            self.winner = self._first[key]

    def spoil(self) -> None:
        """Count one who will not vote."""
        self._spoilt += 1

    @property
    def most(self) -> int:
        """How many agree at most."""
        return max(self._votes.values(), default=0)

    @property
    def is_over(self) -> bool:
        """Whether a majority is there, or cannot come any more."""
        left = self._of - self._spoilt - self._votes.total()
        return self.winner is not None or (self.most + max(0, left)) * 2 <= self._of


def same_value(value: object) -> Hashable:
    """Return what is equal for values that are the same data, whatever the order of their keys."""
    payload = encode(value)
    if type(value) is bytes:
        return (bytes, payload)
    return msgspec.json.encode(decode(payload), order="sorted")


def key_of(key: Callable[[Any], Hashable] | None) -> Callable[[Any], Hashable]:
    """Return what tells whether two values agree."""
    if key is None:
        return same_value
    check_function(key, "key", "key=lambda data: …")
    return key


def check_count(k: int, most: int) -> None:
    """Refuse to wait for a number that cannot come.

    Raises:
        InvalidParams: ``k`` is not 1 to ``most``.
    """
    check_whole(k, "k", most)


def check_sequence(values: Sequence[Any], field: str, most: int, limit: str) -> None:
    """Refuse an empty list, one text, or more than a limit.

    Raises:
        InvalidParams: names the field and the limit.
    """
    check_list(values, field)
    if not values:
        raise InvalidParams(f"there are no {field}", field=field, hint="give one or more")
    if len(values) > most:
        raise InvalidParams(
            f"{len(values)} {field}, {most} are allowed",
            field=field,
            limit=limit,
            hint="do it in parts, or let agents of a group share the work",
        )
