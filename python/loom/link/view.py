"""Looking into a log and copying it, without an engine: what the compiled library does for that."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from loom.errors import error_from_code

P = ParamSpec("P")
R = TypeVar("R")


def _ask(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    from loom._engine import EngineError

    try:
        return work(*args, **kwargs)
    except EngineError as error:
        number, message, field, limit, hint, retry_after = error.args
        raise error_from_code(
            number, message, field=field, limit=limit, hint=hint, retry_after=retry_after
        ) from None


class LogView:
    """The view of one namespace's log: a SQLite file that is derived from it.

    It works beside a running engine, and on a directory that no engine has open.

    Raises:
        LoomError: ``data`` is no log, or ``file`` cannot be written.
    """

    def __init__(self, data: Path, namespace: str, file: Path) -> None:
        from loom._engine import LogView as Engine

        self._view = _ask(Engine, data, namespace, file)

    def catch_up(self) -> tuple[int, bool]:
        """Take over the next portion of the log; return its records, and whether it was the last.

        Raises:
            LoomError: the log is damaged there, or the file cannot be written.
        """
        return _ask(self._view.catch_up)

    @property
    def position(self) -> str | None:
        """The last position that the view holds; None where it is empty."""
        return self._view.position


def namespaces(data: Path) -> list[str]:
    """Return the namespaces that have a log in ``data``.

    Raises:
        LoomError: it is no log.
    """
    from loom._engine import namespaces

    return _ask(namespaces, data)


def holder(data: Path) -> tuple[bool, int | None]:
    """Return whether an engine has ``data`` open, and in which process if that is known.

    Raises:
        LoomError: it is no log.
    """
    from loom._engine import holder

    return _ask(holder, data)


@dataclass(frozen=True, slots=True)
class Held:
    """What one namespace of a copy holds: positions from ``first`` to before ``end``."""

    namespace: str
    first: int
    end: int
    records: int


@dataclass(frozen=True, slots=True)
class Copied:
    """What a backup or a restore did."""

    namespaces: list[Held]
    files: int
    bytes: int


def backup(data: Path, to: Path) -> Copied:
    """Copy the log in ``data``, which may be in use, to the new directory ``to``; check it.

    Raises:
        LoomError: there is something at ``to``, or the log is damaged; then nothing is left there.
    """
    from loom._engine import backup

    return _copied(_ask(backup, data, to, int(time.time() * 1000)))


def restore(source: Path, to: Path) -> Copied:
    """Make a log in the new directory ``to`` from a backup.

    Raises:
        LoomError: there is something at ``to``, or the backup is not as it was written.
    """
    from loom._engine import restore

    return _copied(_ask(restore, source, to))


def _copied(told: tuple[list[tuple[str, int, int, int]], int, int]) -> Copied:
    held, files, size = told
    return Copied([Held(*one) for one in held], files, size)
