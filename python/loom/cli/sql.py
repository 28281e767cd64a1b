"""``loom sql``: a query of the view. Nothing can be changed by it."""

import csv
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final, Literal

from loom.cli.place import data_directory
from loom.cli.show import print_json, print_table
from loom.errors import DeadlineExceeded, Denied, InvalidParams
from loom.node.looking import Looking, open_view, tell_stop
from loom.node.place import find_log

_ROWS: Final = 1000  # rows of a table for people
_STEPS: Final = 1 << 14  # of SQLite's machine, between two looks at the clock
_READING: Final = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)


def show_query(
    data: str | None,
    namespace: str | None,
    query: str | None,
    *,
    output: Literal["table", "json", "csv"],
    schema: bool,
    timeout: float,
) -> int:
    """Run the query and print its rows, or print the schema; return the exit code.

    Raises:
        InvalidParams: SQLite does not understand the query.
        Denied: it would change something.
        DeadlineExceeded: it took longer than ``timeout`` seconds.
    """
    if query == "-":
        query = sys.stdin.read()
    if not schema and (query is None or not query.strip()):
        raise InvalidParams(
            "no query was given",
            field="query",
            hint='such as: loom sql "SELECT topic, count(*) FROM events GROUP BY topic"; '
            "--schema shows the tables",
        )
    with open_view(find_log(data_directory(data), namespace)) as looking:
        looking.catch_up()
        if looking.is_empty:
            sys.stderr.write(f"nothing was logged yet in {looking.place.data}\n")
        elif schema or query is None:
            _show_schema(looking)
        else:
            _show_rows(looking, query, output, timeout)
        return tell_stop(looking)
    return 0


def _show_schema(looking: Looking) -> None:
    order = "CASE type WHEN 'table' THEN 0 WHEN 'view' THEN 1 ELSE 2 END, name"
    sql = f"SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY {order}"  # noqa: S608
    for (made,) in looking.rows(sql):
        sys.stdout.write(f"{made};\n\n" if "\n" in made else f"{made};\n")


def _show_rows(looking: Looking, query: str, output: str, timeout: float) -> None:
    db, denied = looking.db, list[str]()

    def allow(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action in _READING and second != "load_extension":
            return sqlite3.SQLITE_OK
        denied.append(first or "")
        return sqlite3.SQLITE_DENY

    end = time.monotonic() + timeout
    db.set_authorizer(allow)
    db.set_progress_handler(lambda: looking.stop.is_set() or time.monotonic() > end, _STEPS)
    try:
        with closing(db.execute(query)) as cursor:
            if cursor.description is None:
                raise InvalidParams("this is no query", field="query", hint="write SELECT …")
            _print(_names(cursor), cursor, output)
    except (sqlite3.Error, sqlite3.Warning) as error:
        if looking.stop.is_set():
            raise
        if time.monotonic() > end and "interrupted" in str(error):
            raise DeadlineExceeded(
                f"the query took longer than {timeout:g} s",
                field="timeout",
                hint="give a longer --timeout, or ask for less",
            ) from None
        raise _refusal(looking, error, is_denied=bool(denied)) from None


def _refusal(looking: Looking, error: Exception, *, is_denied: bool) -> Exception:
    if is_denied:
        return Denied("the view can only be read", field="query", hint="write SELECT …")
    message = str(error)
    what, _, name = message.partition(": ")
    hint = "--schema shows the tables and their columns"
    if what in {"no such table", "no such column"}:
        looking.db.set_authorizer(None)
        names = (
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
            if what == "no such table"
            else "SELECT DISTINCT c.name FROM sqlite_master m, pragma_table_xinfo(m.name) c"
        )
        known: list[str] = [row[0] for row in looking.rows(names)]
        close = get_close_matches(name.rpartition(".")[2], known, 3)
        hint = f"close to it: {', '.join(close)}; {hint}" if close else hint
    return InvalidParams(f"SQLite says: {message}", field="query", hint=hint)


def _names(cursor: sqlite3.Cursor) -> list[str]:
    """Return the columns' names; one that is there twice gets a number."""
    names: list[str] = []
    for column in cursor.description:
        name, number = column[0], 2
        while name in names:
            name, number = f"{column[0]}_{number}", number + 1
        names.append(name)
    return names


def _print(names: list[str], rows: Iterator[Sequence[Any]], output: str) -> None:
    if output == "json":
        for row in rows:
            print_json(dict(zip(names, map(_value, row), strict=True)))
    elif output == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(map(_value, row) for row in rows)
    else:
        shown = [
            ["" if cell is None else str(_value(cell)) for cell in row]
            for row in islice(rows, _ROWS)
        ]
        print_table(names, shown)
        if next(rows, None) is not None:
            sys.stderr.write(f"… the first {_ROWS} rows; --json and --csv give all\n")


def _value(cell: Any) -> Any:
    return cell.hex() if isinstance(cell, bytes) else cell
