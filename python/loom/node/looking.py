"""The view of a log, for those who look into it: commands, and a node that is asked."""

import os
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

from loom.config import cache_directory
from loom.errors import Internal, InvalidParams, LoomError, NotFound
from loom.link.view import LogView, holder
from loom.node.place import Place

_INTERRUPTED: Final = 130
_STEPS: Final = 1 << 14  # of SQLite's machine, between two looks at Ctrl-C
_SLOW: Final = 1.0  # seconds before a terminal is told what is going on
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_SHORT: Final = 4  # characters that may stand for an id
_SEE: Final = {"run": "`loom runs` lists them", "thread": '`loom sql "SELECT * FROM threads"`'}


@contextmanager
def open_view(place: Place) -> Generator["Looking"]:
    """Open the view of a log for a command; it is not brought up to date yet.

    Ctrl-C ends what SQLite does where that leaves everything in order; the exit code is 130 then.
    """
    looking = Looking(place)

    def note(_number: int, _frame: object) -> None:
        looking.stop.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield looking
    except sqlite3.DatabaseError as error:
        if not looking.stop.is_set():
            raise Internal(
                f"the view {looking.file} cannot be read: {error}",
                hint="delete the file: it is built anew",
            ) from None
    finally:
        signal.signal(signal.SIGINT, before)
        looking.close()
    if looking.stop.is_set():
        raise SystemExit(_INTERRUPTED)


class Looking:
    """The view of one log: written by the engine's library, read by SQLite's own.

    ``stopped`` is why it could not be read to its end: the log is damaged there. ``stop`` is set by
    Ctrl-C.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.file = _file(place)
        self.stop = threading.Event()
        self.stopped: LoomError | None = None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._view = LogView(place.data, place.namespace, self.file)
        self._db: sqlite3.Connection | None = None

    @property
    def db(self) -> sqlite3.Connection:
        """The view, for reading only."""
        if self._db is None:
            uri = self.file.resolve().as_uri() + "?mode=ro"
            self._db = sqlite3.connect(uri, uri=True, timeout=10)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA query_only = 1")
            self._db.set_progress_handler(self.stop.is_set, _STEPS)
        return self._db

    def catch_up(self) -> None:
        """Bring it up to date; where the log is damaged, up to there."""
        began, records = time.monotonic(), 0
        told = False
        try:
            at_end = False
            while not at_end and not self.stop.is_set():
                taken, at_end = self._view.catch_up()
                records += taken
                if sys.stderr.isatty() and not at_end and time.monotonic() - began > _SLOW:
                    sys.stderr.write(f"\rreading the log: {records:,} records")
                    sys.stderr.flush()
                    told = True
        except Internal as error:
            if self._view.position is None:
                raise
            self.stopped = error
        finally:
            if told:
                sys.stderr.write("\r\x1b[2K")

    @property
    def is_empty(self) -> bool:
        """Whether nothing was logged yet: then there is nothing to query either."""
        return self._view.position is None

    @property
    def is_operating(self) -> bool:
        """Whether an engine has the log open now."""
        return holder(self.place.data)[0]

    def close(self) -> None:
        """Close it."""
        if self._db is not None:
            self._db.close()

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """Return all rows of a query of our own."""
        with closing(self.db.execute(sql, values)) as cursor:
            return cursor.fetchall()

    def resolve(self, what: Literal["run", "thread"], given: str) -> str:
        """Return the id that ``given`` stands for.

        It is the id, or where that is unique among the newest, how it begins or ends.

        Raises:
            NotFound: there is no such thing; the hint names close ones.
            InvalidParams: it stands for several.
        """
        if self.rows(f"SELECT 1 FROM {what}s WHERE {what} = ?", (given,)):  # noqa: S608
            return given
        newest = f"SELECT {what} FROM {what}s ORDER BY last_n DESC LIMIT 2000"  # noqa: S608
        ids: list[str] = [row[0] for row in self.rows(newest)]
        short = given.removeprefix("…")
        if len(short) >= _SHORT:
            fitting = [one for one in ids if one.startswith(short) or one.endswith(short)]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                raise InvalidParams(
                    f"{len(fitting)} {what}s begin or end with {short!r}",
                    field=what,
                    hint=f"one of: {', '.join(fitting[:3])}",
                )
        close = get_close_matches(given, ids, 3, cutoff=0.7)
        raise NotFound(
            f"there is no {what} {given!r} in the log",
            field=what,
            hint=f"close to it: {', '.join(close)}" if close else _SEE[what],
        )


def _file(place: Place) -> Path:
    """Return the file of the view: in the data directory, else in the cache.

    A backup is left as it is: with a file more it could not be restored.
    """
    name = f"{place.namespace}.sqlite"
    own = place.data / "view"
    writable = os.access(own if own.is_dir() else place.data, os.W_OK)
    if writable and not (place.data / "MANIFEST").exists():
        return own / name
    of = sha256(str(place.data.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache_directory() / "view" / of / name


def moment(text: str, *, field: str, now: float) -> float:
    """Return what ``--since`` or ``--until`` means, in seconds since 1970.

    A duration such as ``90s``, ``1h30m`` or ``2d`` is before now; else it is an ISO date or time,
    of today where it is a time only, and local where it has no zone.

    Raises:
        InvalidParams: it is neither.
    """
    import datetime

    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return now - sum(float(number) * _UNITS[unit] for number, unit in parts)
    today = datetime.datetime.fromtimestamp(now).astimezone()
    try:
        if ":" in text and "-" not in text[:5]:
            at = datetime.time.fromisoformat(text)
            return datetime.datetime.combine(
                today.date(), at, at.tzinfo or today.tzinfo
            ).timestamp()
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidParams(
            f"{text!r} is neither a duration nor a time",
            field=field,
            hint="a duration such as 90s, 1h30m or 2d, or a time such as 14:05 or 2026-05-01T14:05",
        ) from None


def tell_stop(looking: Looking) -> int:
    """Say where a damaged log could not be read any further; return the exit code."""
    error = looking.stopped
    if error is None:
        return 0
    sys.stderr.write(f"loom: {error.code}: the log could be read up to here: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")
    return 1


def as_raw(row: Any) -> Any:
    """Return the data of a row as it goes into JSON."""
    import msgspec

    data, kind = row["data"], row["content_type"]
    if data is None:
        return None
    if kind is None or "json" in kind:
        return msgspec.Raw(data.encode())
    return data
