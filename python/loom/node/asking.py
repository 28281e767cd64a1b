"""What a log is asked, and what it answers: the same for a command beside it and for a node.

Each answer is a list of plain values, or one; the rows come from the view of the log.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from loom.errors import CLASSES, Conflict, InvalidCursor, InvalidParams, NotFound
from loom.node.looking import Looking, moment
from loom.replay import Log, Moment
from loom.topics import check_filter, matches

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LINES: Final = """
SELECT n, 'event' AS type, time_ms, level, code, topic, agent, sender, thread, run, correlation,
    causation, id, hop, durable, content_type, bytes, data, position FROM events
UNION ALL
SELECT n, 'error', time_ms, 'error', code, coalesce(name, kind), agent, NULL, thread, run, NULL,
    event, NULL, NULL, NULL, 'text/plain', length(message), message, NULL
FROM errors WHERE events = 0
UNION ALL
SELECT n, 'note', time_ms, level, NULL, kind, NULL, NULL, NULL, run, NULL,
    NULL, NULL, NULL, NULL, 'text/plain', length(message), message, NULL FROM notes
"""
_LAST: Final = 2**63 - 1  # the largest number of a row
_SHORT: Final = 4  # characters that may stand for an id
_NOTED: Final = "the engine ended before its outcome"
_OPEN_EFFECTS: Final = ("planned", "dispatched")
OPEN: Final = "redriven_n IS NULL"
_CHAIN: Final = 100  # events of a chain that are shown


# -- events, errors, notes ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which lines; None: all."""

    agent: str | None = None
    thread: str | None = None
    correlation: str | None = None
    run: str | None = None
    topic: str | None = None
    level: str | None = None
    code: str | None = None
    since: str | None = None
    until: str | None = None
    grep: str | None = None
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Checks:
    """What was asked for, checked, and as it goes into SQL; times in milliseconds."""

    topic: Callable[[str], bool] | None
    grep: Callable[[str], bool] | None
    since: float | None
    until: float | None
    code: str | None
    levels: tuple[str, ...]

    def where(self, looking: Looking, wanted: Wanted) -> tuple[str, list[object]]:
        """Return the condition and its values; ids of runs and threads may be short."""
        run, thread = wanted.run, wanted.thread
        parts: list[tuple[str, object]] = [
            ("agent = ?", wanted.agent),
            ("run = ?", None if run is None else looking.resolve("run", run)),
            ("thread = ?", None if thread is None else looking.resolve("thread", thread)),
            ("? IN (correlation, id)", wanted.correlation),
            ("code = ?", self.code),
            ("time_ms >= ?", self.since),
            ("time_ms < ?", self.until),
        ]
        if self.levels:
            parts.extend(
                (f"level <> '{level}'", ...) for level in _LEVELS if level not in self.levels
            )
        for name, test, column in (
            ("loom_topic", self.topic, "topic"),
            ("loom_grep", self.grep, "coalesce(data, '')"),
        ):
            if test is not None:
                looking.db.create_function(name, 1, test, deterministic=True)
                parts.append((f"{name}({column})", ...))
        asked = [(part, value) for part, value in parts if value is not None]
        values = [value for _, value in asked if value is not ...]
        return " AND ".join(part for part, _ in asked) or "1", values


def checked(wanted: Wanted) -> Checks:
    """Return what is wanted as it goes into SQL.

    Raises:
        InvalidParams: a filter, a time, a pattern, a level or a code is none.
    """
    now = time.time()
    pattern = None if wanted.topic is None else check_filter(wanted.topic, field="topic")
    return Checks(
        topic=None if pattern is None else lambda topic: matches(pattern, topic),
        grep=None if wanted.grep is None else _grep(wanted.grep),
        since=None if wanted.since is None else 1000 * moment(wanted.since, field="since", now=now),
        until=None if wanted.until is None else 1000 * moment(wanted.until, field="until", now=now),
        code=None if wanted.code is None else _code(wanted.code),
        levels=() if wanted.level is None else _levels(wanted.level),
    )


def _grep(text: str) -> Callable[[str], bool]:
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise InvalidParams(
            f"{text!r} is no pattern: {error}",
            field="grep",
            hint="it is a regular expression; put \\ before a sign that means itself",
        ) from None
    return lambda data: pattern.search(data) is not None


def _code(text: str) -> str:
    codes = [error.CODE for error in CLASSES.values()]
    code = text.upper().replace("-", "_")
    if code not in codes:
        close = get_close_matches(code, codes, 3, cutoff=0.5) or codes
        raise InvalidParams(
            f"there is no error code {text!r}", field="code", hint=f"such as: {', '.join(close)}"
        )
    return code


def _levels(text: str) -> tuple[str, ...]:
    level = text.lower()
    if level not in _LEVELS:
        raise InvalidParams(
            f"there is no level {text!r}", field="level", hint=f"one of: {', '.join(_LEVELS)}"
        )
    return _LEVELS[_LEVELS.index(level) :]


def span(looking: Looking, wanted: Wanted) -> tuple[int, int]:
    """Return the numbers behind which, and up to which, the lines stand that are wanted.

    Those are the newest ``limit`` of them, or all that there are now.
    """
    if looking.is_empty:
        return -1, -1
    end: int = looking.rows("SELECT value FROM meta WHERE key = 'n'")[0][0]
    if not wanted.limit:
        return -1, end
    where, values = checked(wanted).where(looking, wanted)
    sql = f"SELECT n FROM ({LINES}) WHERE {where} ORDER BY n DESC LIMIT 1 OFFSET ?"  # noqa: S608
    rows = looking.rows(sql, (*values, wanted.limit - 1))
    return (rows[0][0] - 1 if rows else -1), end


def logs(
    looking: Looking, wanted: Wanted, after: int, end: int | None, most: int
) -> list[dict[str, Any]]:
    """Return at most ``most`` lines behind one number and up to another, the oldest first."""
    if looking.is_empty:
        return []
    where, values = checked(wanted).where(looking, wanted)
    sql = f"SELECT * FROM ({LINES}) WHERE n > ? AND n <= ? AND {where} ORDER BY n LIMIT ?"  # noqa: S608
    last = _LAST if end is None else end
    return [dict(row) for row in looking.rows(sql, (after, last, *values, most))]


# -- what happened --------------------------------------------------------------------------------


def replayed(log: Log, run: str | None, since: str | None, until: str | None) -> Iterable[Moment]:
    """Return what happened in a run, or from one place on and before another.

    Raises:
        InvalidParams: a place is neither a position nor a time; neither a run nor a place is named.
        NotFound: there is no such run.
    """
    if (run is None) == (since is None):
        raise InvalidParams(
            "a replay is of one run, or from one place on",
            field="run",
            hint="give the id of a run, or --from POSITION or TIME; `loom runs` lists runs",
        )
    if run is not None:
        return log.moments(run)
    return _between(log, since or "", until)


def _between(log: Log, since: str, until: str | None) -> Iterator[Moment]:
    begin, before = _place(log, since, "from"), None
    if until is not None:
        before = _place(log, until, "until")
    start = begin if isinstance(begin, int) else 0
    end = before if isinstance(before, int) else None
    return _timely(log.events(start, end), begin, before)


def _timely(moments: Iterable[Moment], begin: float, before: float | None) -> Iterator[Moment]:
    for found in moments:
        if isinstance(begin, float) and found.at < begin:
            continue
        if isinstance(before, float) and found.at >= before:
            return
        yield found


def _place(log: Log, text: str, field: str) -> int | float:
    """Return a number of the log for a position, seconds since 1970 for a time."""
    if text.isdecimal():
        return int(text)
    try:
        return log.number(text)
    except InvalidCursor:
        pass
    try:
        return moment(text, field=field, now=time.time())
    except InvalidParams:
        raise InvalidParams(
            f"{text!r} is neither a position nor a time",
            field=field,
            hint="a position as receipts show it, a time such as 14:05 or 2026-05-01T14:05, or 15m",
        ) from None


# -- runs -----------------------------------------------------------------------------------------


RUN_PARTS = {
    "agents": "SELECT agent, count(*) AS turns, sum(code <> 'OK') AS failed, "
    "max(attempt) AS attempts FROM turns WHERE run = ? GROUP BY agent ORDER BY min(n)",
    "calls": "SELECT name, kind, count(*) AS calls, sum(code <> 'OK') AS failed, "
    "sum(max(attempts - 1, 0)) AS retries, sum(micros) / 1000.0 AS ms FROM calls WHERE run = ? "
    "GROUP BY kind, name ORDER BY min(n)",
    "costs": "SELECT name, count(*) AS calls, sum(input_tokens) AS input_tokens, "
    "sum(output_tokens) AS output_tokens, sum(cost) AS cost FROM costs WHERE run = ? "
    "GROUP BY name ORDER BY min(n)",
    "errors": "SELECT code, agent, name, message, max(records, events) AS times FROM errors "
    "WHERE run = ? ORDER BY n LIMIT 100",
}


def runs(looking: Looking, limit: int, state: str | None) -> list[dict[str, Any]]:
    """Return the newest runs, the newest last; of a state where one is given."""
    if looking.is_empty:
        return []
    operating = looking.is_operating
    rows = looking.db.execute("SELECT * FROM run_states ORDER BY first_n DESC")
    found: list[dict[str, Any]] = []
    for row in rows:
        told = run_told(row, is_operating=operating)
        if state in {None, told["state"]}:
            found.append(told)
        if limit and len(found) >= limit:
            break
    rows.close()
    return found[::-1]


def run(looking: Looking, given: str) -> dict[str, Any] | None:
    """Return one run with its agents, calls, costs and errors; None: nothing was logged yet.

    Raises:
        NotFound: there is no such run.
    """
    if looking.is_empty:
        return None
    known = looking.resolve("run", given)
    (row,) = looking.rows("SELECT * FROM run_states WHERE run = ?", (known,))
    parts = {
        name: [dict(found) for found in looking.rows(sql, (known,))]
        for name, sql in RUN_PARTS.items()
    }
    return {**run_told(row, is_operating=looking.is_operating), **parts}


def run_told(row: sqlite3.Row, *, is_operating: bool) -> dict[str, Any]:
    """Return a run as it is shown."""
    state = row["state"]
    if state == "running" and not is_operating:
        state = "incomplete"  # the process that ran it is gone
    return {
        "run": row["run"],
        "root": row["root"],
        "agent": row["agent"],
        "thread_id": row["thread"],
        "state": state,
        "started": row["started_ms"] / 1000,
        "seconds": (row["last_ms"] - row["started_ms"]) / 1000,
        "events": row["events"],
        "turns": row["turns"],
        "calls": row["calls"],
        "requests": row["requests"],
        "errors": row["errors"],
        "input_tokens": row["input_tokens"],
        "output_tokens": row["output_tokens"],
        "cost": row["cost"],
    }


# -- dead letters ---------------------------------------------------------------------------------


def dead_letters(looking: Looking, *, redriven: bool, limit: int) -> list[dict[str, Any]]:
    """Return events that were given up, the newest last."""
    if looking.is_empty:
        return []
    where = "1" if redriven else OPEN
    sql = f"SELECT * FROM dead_letters WHERE {where} ORDER BY time_ms DESC, n DESC LIMIT ?"  # noqa: S608
    return [letter_told(row) for row in looking.rows(sql, (limit or -1,))][::-1]


def letter(looking: Looking, given: str) -> dict[str, Any]:
    """Return one event that was given up, with its data and with what led to it.

    Raises:
        InvalidParams: it is no id of one.
        NotFound: there is no such letter.
    """
    told = letter_told(find_letter(looking, given))
    events = looking.rows("SELECT * FROM events WHERE n = ?", (told["n"],))
    event = {name: events[0][name] for name in ("data", "content_type", "bytes")} if events else {}
    return {**told, "event": event, "chain": chain_of(looking, told["event_id"])}


def find_letter(looking: Looking, letter: str) -> Any:
    """Return the row of a dead letter by its id, ``CONSUMER.POSITION`` as the list shows it.

    Raises:
        InvalidParams: it is no such id.
        NotFound: there is no such letter; the hint names those there are.
    """
    consumer, dot, n = letter.partition(".")
    if not (dot and consumer.isdecimal() and n.isdecimal()):
        raise InvalidParams(
            f"{letter!r} is no id of a dead letter",
            field="id",
            hint="take one of `loom dlq list`, such as 1.42",
        )
    if not looking.is_empty:
        sql = "SELECT * FROM dead_letters WHERE consumer = ? AND n = ?"
        for row in looking.rows(sql, (int(consumer), int(n))):
            return row
        newest = f"SELECT * FROM dead_letters WHERE {OPEN} ORDER BY n DESC LIMIT 3"  # noqa: S608
        there = [letter_id(row) for row in looking.rows(newest)]
    else:
        there = []
    raise NotFound(
        f"there is no dead letter {letter}",
        field="id",
        hint=f"there is: {', '.join(there)}" if there else "no event was given up",
    )


def open_letter(looking: Looking, letter: str) -> Any:
    """Return the row of a dead letter that can be published anew.

    Raises:
        Conflict: it was already.
        LoomError: as ``find_letter`` does.
    """
    row = find_letter(looking, letter)
    if row["redriven_n"] is not None:
        raise Conflict(
            f"{letter_id(row)} was published anew already",
            field="id",
            hint="`loom dlq list` shows those that wait",
        )
    return row


def letter_id(row: Any) -> str:
    """Return how a dead letter is called."""
    return f"{row['consumer']}.{row['n']}"


def letter_told(row: Any) -> dict[str, Any]:
    """Return a dead letter as it is shown."""
    message = row["message"] or ""
    return {
        "id": letter_id(row),
        "n": row["n"],
        "agent": row["name"],
        "event_id": row["event"],
        "topic": row["topic"],
        "run_id": row["run"],
        "thread_id": row["thread"],
        "attempts": row["attempt"],
        "code": row["code"],
        "message": message,
        "error": f"{row['code']}: {message}" if row["code"] else message or "given up by its agent",
        "time": row["time_ms"] / 1000,
        "redriven": row["redriven_n"] is not None,
        "position": row["n"],
    }


def chain_of(looking: Looking, event: str | None) -> list[dict[str, Any]]:
    """Return what led to an event, the root first."""
    chain: list[dict[str, Any]] = []
    while event is not None and len(chain) < _CHAIN:
        rows = looking.rows("SELECT * FROM events WHERE id = ? LIMIT 1", (event,))
        if not rows:
            break
        row = rows[0]
        chain.append(
            {
                "id": row["id"],
                "topic": row["topic"],
                "agent": row["agent"],
                "time": row["time_ms"] / 1000,
            }
        )
        event = row["causation"]
    return chain[::-1]


# -- effects --------------------------------------------------------------------------------------


def effects(looking: Looking, *, unknown: bool, limit: int) -> list[dict[str, Any]]:
    """Return effects, the newest last; ``unknown``: those that nobody knows the end of."""
    if looking.is_empty:
        return []
    running = looking.is_operating
    states = ("unknown",) if running else ("unknown", *_OPEN_EFFECTS)
    where = f"state IN ({', '.join('?' * len(states))})" if unknown else "1"
    sql = f"SELECT * FROM effects WHERE {where} ORDER BY n DESC LIMIT ?"  # noqa: S608
    values = (*(states if unknown else ()), limit or -1)
    return [effect_told(row, running=running) for row in looking.rows(sql, values)][::-1]


def effect(looking: Looking, given: str) -> dict[str, Any]:
    """Return what the log knows of one effect."""
    told = effect_told(find_effect(looking, given), running=looking.is_operating)
    sql = "SELECT * FROM calls WHERE effect = ? ORDER BY n DESC LIMIT 1"
    call = next(iter(looking.rows(sql, (told["id"],))), None)
    if call is not None:
        names = ("provider", "code", "message", "arguments", "result")
        told |= {name: call[name] for name in names}
        told |= {"thread_id": call["thread"], "event_id": call["event"]}
    return told


def find_effect(looking: Looking, given: str) -> Any:
    """Return the row of an effect by its id, or by how that begins or ends.

    Raises:
        InvalidParams: several effects are called so.
        NotFound: there is no such effect.
    """
    short = given.removeprefix("…").lower()
    rows: list[Any] = []
    if not looking.is_empty:
        rows = looking.rows("SELECT * FROM effects WHERE effect = ?", (short,))
        if not rows and len(short) >= _SHORT:
            size = len(short)
            sql = (
                "SELECT * FROM effects WHERE substr(effect, 1, ?) = ?"
                " OR substr(effect, -?) = ? ORDER BY n DESC LIMIT 4"
            )
            rows = looking.rows(sql, (size, short, size, short))
    if len(rows) > 1:
        raise InvalidParams(
            f"several effects begin or end with {given!r}",
            field="id",
            hint=f"one of: {', '.join(row['effect'] for row in rows)}",
        )
    if not rows:
        raise NotFound(
            f"there is no effect {given!r} in the log",
            field="id",
            hint="`loom effects list --limit 0` shows all there are",
        )
    return rows[0]


def effect_told(row: Any, *, running: bool) -> dict[str, Any]:
    """Return an effect as it is shown."""
    # What is open in the log of an engine that is gone will never have an outcome.
    orphan = row["state"] in _OPEN_EFFECTS and not running
    return {
        "id": row["effect"],
        "state": "unknown" if orphan else row["state"],
        "capability": row["name"],
        "version": row["version"],
        "effect": row["class"],
        "key": row["key"],
        "caller": row["caller"],
        "attempts": row["attempts"],
        "calls": row["calls"],
        "run_id": row["run"],
        "n": row["n"],
        "intended": row["planned_ms"] / 1000,
        "since": (row["ended_ms"] or row["planned_ms"]) / 1000,
        "by": row["settled_by"],
        "note": _NOTED if orphan else row["note"],
    }
