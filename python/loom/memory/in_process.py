"""A memory in this process. Where there is a log that outlives it, it finds there what it had.

At a node others write it, too: before something is read, the node is asked what it is now.
"""

import re
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol, cast

from loom.codec import decode, encode
from loom.errors import Exhausted, InvalidParams
from loom.limits import KEY_BYTES, MEMORY_BYTES

_ENTRY_BYTES = 200  # what one entry costs besides its key and value, roughly
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of characters
_DEPTH = 127  # what every reader of JSON can read, as for what a registration says of itself


class _Clock(Protocol):
    def now(self) -> float: ...
    def wall(self) -> float: ...


class _Keeper(Protocol):
    is_shared: bool

    async def fresh(self, key: str | None) -> list[tuple[str, bytes, float | None]]: ...
    def values(self) -> list[tuple[str, bytes, float | None]]: ...
    def keep(self, key: str, payload: bytes | None, until: float | None = None) -> None: ...


class InProcessMemory:
    """Keys and JSON values in a dict, at most ``MEMORY_BYTES`` in all.

    With a ``keeper`` it begins with what that has, and tells it of each change.
    """

    def __init__(self, clock: _Clock, keeper: _Keeper | None = None) -> None:
        self._clock = clock
        self._keeper = keeper
        self._entries: dict[str, tuple[bytes, float | None]] = {}
        self._keys: list[str] = []
        self._bytes = 0
        for key, payload, until in keeper.values() if keeper is not None else ():
            self._take(key, payload, until)

    def _take(self, key: str, payload: bytes, until: float | None) -> None:
        """Take a value as the keeper has it; ``until`` by the wall."""
        left = None if until is None else until - self._clock.wall()
        if left is None or left > 0:
            self._put(key, payload, None if left is None else self._clock.now() + left)

    async def _look(self, key: str | None) -> None:
        """Take what others have written under a key, or everywhere."""
        if self._keeper is None or not self._keeper.is_shared:
            return
        found = await self._keeper.fresh(key)
        there = {name for name, _, _ in found}
        for known in self._keys.copy() if key is None else (key,):
            if known not in there and known in self._entries:
                self._drop(known)
        for entry in found:
            self._take(*entry)

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        await self._look(key)
        entry = self._live(key)
        return default if entry is None else decode(entry)

    async def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Keep ``value`` under ``key``, for ``ttl`` seconds if given.

        Raises:
            Exhausted: the memory is full.
            InvalidParams: the key is no text of 1 to ``KEY_BYTES`` bytes without control
                characters, the value has no JSON form or is nested more than 127 levels deep, or
                ``ttl`` is not positive.
        """
        _check_key(key)
        if ttl is not None and ttl <= 0:
            raise InvalidParams(f"a ttl of {ttl} s is out of range", field="ttl")
        if isinstance(value, bytes):
            raise InvalidParams("a memory keeps JSON values, not bytes", field="value")
        payload = encode(value, field="value")
        _check_depth(payload)
        self._make_room(key, payload)
        if self._keeper is not None:
            self._keeper.keep(key, payload, None if ttl is None else self._clock.wall() + ttl)
        self._put(key, payload, None if ttl is None else self._clock.now() + ttl)

    def _make_room(self, key: str, payload: bytes) -> None:
        old = self._entries.get(key)
        grown = self._bytes + _cost(key, payload) - (0 if old is None else _cost(key, old[0]))
        if grown > MEMORY_BYTES:
            self._sweep()
            old = self._entries.get(key)
            grown = self._bytes + _cost(key, payload) - (0 if old is None else _cost(key, old[0]))
        if grown > MEMORY_BYTES:
            raise Exhausted(
                f"the memory holds {self._bytes} bytes and {key!r} would not fit",
                field="value",
                limit="memory_bytes",
                hint="delete what is not needed, or give values a ttl",
            )

    def _put(self, key: str, payload: bytes, until: float | None) -> None:
        old = self._entries.get(key)
        if old is None:
            insort(self._keys, key)
        self._bytes += _cost(key, payload) - (0 if old is None else _cost(key, old[0]))
        self._entries[key] = (payload, until)

    async def delete(self, key: str) -> bool:
        """Forget ``key``; tell whether it was there."""
        await self._look(key)
        there = self._live(key) is not None
        if there:
            if self._keeper is not None:
                self._keeper.keep(key, None)
            self._drop(key)
        return there

    async def scan(self, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
        """Yield keys that start with ``prefix`` and their values, in the order of the keys."""
        await self._look(None)
        start = bisect_left(self._keys, prefix)
        for key in self._keys[start:]:
            if not key.startswith(prefix):
                return
            payload = self._live(key)
            if payload is not None:
                yield key, decode(payload)

    def _live(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        payload, until = entry
        if until is not None and until <= self._clock.now():
            self._drop(key)
            return None
        return payload

    def _sweep(self) -> None:
        for key in list(self._entries):
            self._live(key)

    def _drop(self, key: str) -> None:
        payload, _ = self._entries.pop(key)
        self._bytes -= _cost(key, payload)
        del self._keys[bisect_left(self._keys, key)]


def _cost(key: str, payload: bytes) -> int:
    return len(key.encode()) + len(payload) + _ENTRY_BYTES


def _check_key(key: str) -> None:
    """Refuse what a node would refuse, too."""
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]  untyped callers
        raise InvalidParams(f"the key is {key!r}, not text", field="key")
    if not key:
        raise InvalidParams("a key must not be empty", field="key", hint="name what is kept")
    if _CONTROL.search(key):
        raise InvalidParams("the key has a control character", field="key", hint="leave it out")
    size = len(key.encode())
    if size > KEY_BYTES:
        raise InvalidParams(
            f"the key has {size} bytes of at most {KEY_BYTES}", field="key", limit="key_bytes"
        )


def _check_depth(payload: bytes) -> None:
    """Refuse what a node would refuse, too; only what has that many brackets is looked through."""
    if payload.count(b"[") + payload.count(b"{") <= _DEPTH:
        return
    level: list[Any] = [decode(payload)]
    for _ in range(_DEPTH):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return
    if any(isinstance(value, dict | list) for value in level):
        raise InvalidParams(
            f"the value is nested more than {_DEPTH} levels deep",
            field="value",
            hint="keep its parts under keys of their own",
        )


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()
