"""A log as it is read from outside: beside an engine that runs, or after it has stopped."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from loom.errors import InvalidParams
from loom.link.link import refused

if TYPE_CHECKING:
    from loom._engine import LogReader

Row: TypeAlias = tuple[str, int, int, dict[str, Any], bytes]
"""A record: its kind, the epoch and the number of its position, its head, its body."""


class Reader:
    """Reads the logs in a data directory, up to what is durable. It writes nothing."""

    def __init__(self, reader: "LogReader", refusal: type[Exception]) -> None:
        self._reader = reader
        self._refusal = refusal

    def namespaces(self) -> list[str]:
        """Return the namespaces that have a log, by name."""
        try:
            self._reader.refresh()
        except self._refusal as error:
            raise refused(error) from None
        return self._reader.namespaces()

    def bounds(self, namespace: str) -> tuple[int, int]:
        """Return the oldest number that is kept, and the one behind the newest."""
        try:
            return self._reader.bounds(namespace)
        except self._refusal as error:
            raise refused(error) from None

    def number(self, namespace: str, position: str) -> int:
        """Return the number of a position."""
        try:
            return self._reader.number(namespace, position)
        except self._refusal as error:
            raise refused(error) from None

    def read(self, namespace: str, start: int, most: int) -> tuple[list[Row], int, bool]:
        """Return up to ``most`` records, where to go on, and whether there was no more."""
        try:
            return self._reader.read(namespace, start, most)
        except self._refusal as error:
            raise refused(error) from None

    def run(self, namespace: str, run: str) -> list[Row]:
        """Return all records of one run."""
        try:
            return self._reader.run(namespace, run)
        except self._refusal as error:
            raise refused(error) from None

    def find(self, namespace: str, ids: list[str]) -> list[Row]:
        """Return the events with these ids."""
        try:
            return self._reader.find(namespace, ids)
        except self._refusal as error:
            raise refused(error) from None

    def alike(self, namespace: str, part: str, most: int) -> list[str]:
        """Return ids of events that begin or end with ``part``, the newest ``most`` of them."""
        try:
            return self._reader.alike(namespace, part, most)
        except self._refusal as error:
            raise refused(error) from None

    def runs(self, namespace: str, most: int) -> list[tuple[Any, ...]]:
        """Return what is known of the newest runs."""
        try:
            return self._reader.runs(namespace, most)
        except self._refusal as error:
            raise refused(error) from None

    def fold(
        self, namespace: str, until: int | None, *, anew: bool = False
    ) -> tuple[list[tuple[str, str, bytes]], bytes]:
        """Return the states as they were before a number, and the hash of all that is folded.

        It begins at the newest snapshot before that, or ``anew`` with the oldest record.
        """
        try:
            return self._reader.fold(namespace, until, anew)
        except self._refusal as error:
            raise refused(error) from None


def open_reader(path: str | os.PathLike[str]) -> Reader:
    """Open a data directory for reading.

    Raises:
        InvalidParams: it is no path.
        LoomError: there is no log, or one of a newer version.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidParams(
            f"{path!r} is not the path of a data directory",
            field="path",
            hint='give the folder that was given as data, such as "./data"',
        )
    from loom._engine import EngineError, LogReader

    try:
        return Reader(LogReader(Path(path)), EngineError)
    except EngineError as error:
        raise refused(error) from None


def digest(payload: bytes) -> bytes:
    """Return what stands for bytes where two of them are compared; nothing for nothing."""
    from loom._engine import digest as engine_digest

    return engine_digest(payload)
