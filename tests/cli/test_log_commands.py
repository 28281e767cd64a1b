"""The commands that look into a log, on a directory that an app has made."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loom.cli.asked import Where
from loom.cli.main import main
from loom.errors import InvalidParams
from loom.node.looking import moment

APP = '''
import loom

app = loom.App("shop")


@app.capability("prices.get", effect="pure", timeout=5)
async def price(item: str) -> float:
    """Look up a price."""
    if item == "gold":
        raise ValueError("not for sale")
    return 1.5


@app.agent("clerk", topics=["order.*"])
async def clerk(ctx: loom.Context, event: loom.Event) -> object:
    """Takes orders."""
    ctx.log.warning("asked for %s", event.data["item"])
    asked = await ctx.tool(price.bind(item=event.data["item"]))
    await ctx.emit("sold", {"text": "evil \\x1b[31mred\\x07", "price": asked})
    return "sold"


@app.agent("book", topics=["sold"])
async def book(ctx: loom.Context, event: loom.Event) -> None:
    """Keeps the books."""


async def main(ctx: loom.Context, args: list[str]) -> object:
    for item in args:
        try:
            await ctx.request("order.new", {"item": item})
        except loom.LoomError:
            pass
    return "done"
'''


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Loom = Callable[..., Said]


@pytest.fixture
def loom(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Loom:
    """Run a command in this process, as a person would."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["loom", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else int(code is not None), said.out, said.err)

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after one run of the app: two orders that went well, one that failed."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(APP, encoding="utf-8")
    words = ["run", "-q", "shop.py", "--data", "data", "--", "milk", "gold", "bread"]
    done = subprocess.run(
        [sys.executable, "-m", "loom", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    return folder / "data"


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy of that directory, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def segments(data: Path) -> list[Path]:
    return sorted((data / "default" / "log").glob("*.seg"))


def flip(path: Path, *, at: float) -> None:
    """Change one bit in what is written of a file."""
    held = bytearray(path.read_bytes())
    end = len(bytes(held).rstrip(b"\0"))
    held[int(end * at)] ^= 0x40
    path.write_bytes(held)


pytestmark = pytest.mark.timeout(120)


# -- logs -----------------------------------------------------------------------------------------


@pytest.mark.requirement("CLILOG-LOGS")
def test_logs_shows_events_oldest_first_with_the_control_characters_of_their_data_written_out(
    loom: Loom, data: Path
) -> None:
    said = loom("logs", "--data", data)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert sum("order.new" in line and "milk" in line for line in lines) >= 1
    order = [line for line in lines if " order.new " in line or " sold " in line]
    assert "milk" in order[0]
    assert "\x1b" not in said.out
    assert "\\u001b[31mred" in said.out or "\\x1b[31mred" in said.out
    assert any("CAPABILITY_ERROR" in line and " error " in line for line in lines)


@pytest.mark.requirement("CLILOG-LOGS")
def test_logs_as_json_has_one_object_a_line_with_positions_that_rise(
    loom: Loom, data: Path
) -> None:
    lines = loom("logs", "--data", data, "--json").lines
    events = [line for line in lines if line["type"] == "event"]
    assert {"order.new", "sold"} <= {event["topic"] for event in events}
    positions = [event["position"] for event in events]
    assert positions == sorted(positions)
    (milk, *_) = (event for event in events if event["topic"] == "order.new")
    assert milk["data"] == {"item": "milk"}
    sold = next(event for event in events if event["topic"] == "sold")
    assert sold["run_id"] == milk["run_id"]
    assert sold["agent"] == "clerk"


FILTERS: list[tuple[list[str], Callable[[dict[str, Any]], bool]]] = [
    (["--topic", "order.*"], lambda line: "order.new" in {line.get("topic"), line.get("name")}),
    (["--topic", "loom.log.>"], lambda line: line["topic"] == "loom.log.warning"),
    (["--agent", "clerk"], lambda line: line["agent"] == "clerk"),
    (["--level", "error"], lambda line: line.get("level", "error") == "error"),
    (["--code", "capability_error"], lambda line: line["code"] == "CAPABILITY_ERROR"),
    (["--grep", "MILK"], lambda line: "milk" in json.dumps(line["data"])),
    (["--since", "1h", "--topic", "sold"], lambda line: line["topic"] == "sold"),
]


@pytest.mark.requirement("CLILOG-FILTERS")
@pytest.mark.parametrize(("words", "check"), FILTERS, ids=[" ".join(f[0]) for f in FILTERS])
def test_logs_shows_what_a_filter_takes_and_nothing_else(
    loom: Loom, data: Path, words: list[str], check: Callable[[dict[str, Any]], bool]
) -> None:
    every = loom("logs", "--data", data, "--json", "--limit", "0").lines
    said = loom("logs", "--data", data, "--json", "--limit", "0", *words)
    assert said.code == 0
    assert said.lines
    assert all(check(line) for line in said.lines)
    assert len(said.lines) < len(every)


@pytest.mark.requirement("CLILOG-FILTERS")
def test_logs_of_a_run_a_thread_and_a_correlation_are_those_that_have_it(
    loom: Loom, data: Path
) -> None:
    every = [e for e in loom("logs", "--data", data, "--json").lines if e["type"] == "event"]
    order = next(event for event in every if event["topic"] == "order.new")
    for option, key in (("--run", "run_id"), ("--thread", "thread_id")):
        said = loom("logs", "--data", data, "--json", option, order[key])
        wanted = [event["id"] for event in every if event[key] == order[key]]
        assert [e["id"] for e in said.lines if e["type"] == "event"] == wanted
    short = loom("logs", "--data", data, "--json", "--run", order["run_id"][-12:])
    assert {event["run_id"] for event in short.lines} == {order["run_id"]}
    said = loom("logs", "--data", data, "--json", "--correlation", order["id"])
    assert order["id"] in [event["id"] for event in said.lines]
    assert loom("logs", "--data", data, "--until", "1h").out == ""


@pytest.mark.requirement("CLILOG-FILTERS")
def test_logs_shows_the_newest_and_says_that_there_are_more(loom: Loom, data: Path) -> None:
    every = loom("logs", "--data", data, "--json", "--limit", "0").lines
    said = loom("logs", "--data", data, "--json", "--limit", "2")
    assert said.lines == every[-2:]
    assert "--limit 0 shows all" in said.err


@pytest.mark.requirement("CLILOG-ERRORS")
@pytest.mark.parametrize(
    ("words", "code", "said_on_stderr"),
    [
        (["--level", "loud"], 2, "one of: debug, info, warning, error, critical"),
        (["--code", "TIMEOOT"], 2, "TIMEOUT"),
        (["--since", "yesterday"], 2, "neither a duration nor a time"),
        (["--topic", "a..b"], 2, "field: topic"),
        (["--grep", "(["], 2, "regular expression"),
        (["--run", "no-such-run"], 4, "`loom runs` lists them"),
        (["--namespace", "defautl"], 4, "there is: default"),
        (["--limit", "-1"], 2, "limit"),
    ],
)
def test_logs_refuses_a_wrong_filter_and_names_the_way_out(
    loom: Loom, data: Path, words: list[str], code: int, said_on_stderr: str
) -> None:
    said = loom("logs", "--data", data, *words)
    assert (said.code, said.out) == (code, "")
    assert said_on_stderr in said.err


@pytest.mark.requirement("CLILOG-ERRORS")
def test_an_unknown_run_is_told_with_those_that_are_close(loom: Loom, data: Path) -> None:
    run: str = loom("runs", "--data", data, "--json").lines[-1]["run"]
    wrong = run[:20] + "ffff" + run[24:]
    said = loom("logs", "--data", data, "--run", wrong)
    assert said.code == 4
    assert run in said.err


@pytest.mark.requirement("CLILOG-ERRORS")
def test_a_path_that_is_no_log_and_a_missing_one_are_refused_and_left_alone(
    loom: Loom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    for path in (tmp_path / "mine", tmp_path / "mine" / "letter.txt", tmp_path / "none"):
        said = loom("logs", "--data", path)
        assert (said.code, said.out) == (2, "")
        assert "is no log" in said.err
        assert "`loom run --data DIR` begins one" in said.err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]
    monkeypatch.chdir(tmp_path)
    said = loom("logs")
    assert said.code == 2
    assert "LOOM_LOG__DIR" in said.err


@pytest.mark.requirement("CLILOG-ERRORS")
def test_the_data_directory_comes_from_the_configuration(
    loom: Loom, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_LOG__DIR", str(data))
    assert "order.new" in loom("logs").out


@pytest.mark.requirement("CLILOG-DAMAGED")
def test_a_damaged_log_is_shown_up_to_the_place_which_is_named(loom: Loom, data: Path) -> None:
    whole = loom("logs", "--data", data, "--json", "--limit", "0").lines
    shutil.rmtree(data / "view")
    flip(segments(data)[0], at=0.7)
    for _ in range(2):
        said = loom("logs", "--data", data, "--json", "--limit", "0")
        assert said.code == 1
        assert 0 < len(said.lines) < len(whole)
        assert said.lines == whole[: len(said.lines)]
        assert ".seg is damaged at byte" in said.err


@pytest.mark.requirement("CLILOG-VIEW")
def test_a_view_that_is_deleted_or_damaged_is_built_anew(loom: Loom, data: Path) -> None:
    whole = loom("logs", "--data", data).out
    file = data / "view" / "default.sqlite"
    file.write_bytes(b"not a database" * 1000)
    assert loom("logs", "--data", data).out == whole
    shutil.rmtree(data / "view")
    assert loom("logs", "--data", data).out == whole


@pytest.mark.requirement("CLILOG-VIEW")
def test_the_view_of_a_directory_that_cannot_be_written_is_kept_in_the_cache(
    loom: Loom, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_HOME", str(tmp_path / "home"))
    real = os.access

    def access(path: Path, mode: int) -> bool:
        return path != data and real(path, mode)

    monkeypatch.setattr(os, "access", access)
    shutil.rmtree(data / "view", ignore_errors=True)
    assert "order.new" in loom("logs", "--data", data).out
    assert not (data / "view").exists()
    assert len(list((tmp_path / "home").rglob("default.sqlite"))) == 1


@pytest.mark.requirement("CLILOG-FOLLOW")
def test_following_beside_a_running_engine_shows_what_is_new_until_ctrl_c(tmp_path: Path) -> None:
    code = APP.replace(
        '    return "done"',
        "    await ctx.emit('order.more', {'item': 'tea'})\n"
        "    import asyncio\n"
        "    await asyncio.Event().wait()",
    )
    (tmp_path / "shop.py").write_text(code, encoding="utf-8")
    words = ["run", "--json", "shop.py", "--data", "data", "--", "milk"]
    with started(*words, cwd=tmp_path) as app:
        read_until('"topic":"sold"', app)
        with started("logs", "-f", "--json", "--data", "data", cwd=tmp_path) as logs:
            read_until('"order.more"', logs)
            logs.send_signal(signal.SIGINT)
            _, err = logs.communicate(timeout=30)
            assert (logs.returncode, err) == (130, "")
        app.send_signal(signal.SIGINT)
        app.communicate(timeout=30)


@contextlib.contextmanager
def started(*words: str, cwd: Path) -> Generator["subprocess.Popen[str]"]:
    """Start a command; it ends with the block, however that ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "loom", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(said: str, process: "subprocess.Popen[str]") -> None:
    """Read what it says up to a line with this in it."""
    assert process.stdout is not None
    assert any(said in line for line in process.stdout), f"it ended without {said}"


@pytest.mark.requirement("CLILOG-FILTERS")
def test_a_time_is_a_duration_before_now_or_a_date() -> None:
    now = 1_800_000_000.0
    assert moment("90s", field="since", now=now) == now - 90
    assert moment("1h30m", field="since", now=now) == now - 5400
    assert moment("1.5d", field="since", now=now) == now - 129_600
    assert moment("2026-05-01T12:00:00Z", field="since", now=now) == 1_777_636_800
    assert moment("2026-05-01T12:00:00+02:00", field="since", now=now) == 1_777_629_600
    assert abs(moment("12:30", field="since", now=now) - now) < 86_400
    for wrong in ("", "5", "m5", "5m x", "-5m", "2026-13-01", "25:00"):
        with pytest.raises(InvalidParams):
            moment(wrong, field="since", now=now)


# -- runs -----------------------------------------------------------------------------------------


@pytest.mark.requirement("CLILOG-RUNS")
def test_runs_lists_each_run_with_its_sums(loom: Loom, data: Path) -> None:
    runs = loom("runs", "--data", data, "--json").lines
    of_orders = [run for run in runs if run["root"] == "order.new"]
    assert [run["state"] for run in of_orders] == ["ended"] * 3
    assert [run["calls"] for run in of_orders] == [1, 1, 1]
    assert [run["errors"] > 0 for run in of_orders] == [False, True, False]
    events = loom("logs", "--data", data, "--json", "--limit", "0").lines
    for run in runs:
        mine = [e for e in events if e["type"] == "event" and e["run_id"] == run["run"]]
        assert run["events"] == len(mine)
    text = loom("runs", "--data", data)
    assert text.code == 0
    assert all(run["run"] in text.out for run in runs)
    assert loom("runs", "--data", data, "--state", "incomplete", "--json").out == ""


@pytest.mark.requirement("CLILOG-RUNS")
def test_runs_show_shows_agents_calls_and_errors_of_one_run(loom: Loom, data: Path) -> None:
    runs = loom("runs", "--data", data, "--json").lines
    failed = next(run for run in runs if run["errors"])
    said = loom("runs", "show", failed["run"], "--data", data)
    assert said.code == 0
    assert "clerk" in said.out
    assert "prices.get" in said.out
    (told,) = loom("runs", "show", failed["run"][-10:], "--data", data, "--json").lines
    assert [call["failed"] for call in told["calls"] if call["name"] == "prices.get"] == [1]
    assert {error["agent"] for error in told["errors"]} >= {"clerk"}
    assert loom("runs", "show", "nothing-like-it", "--data", data).code == 4


# -- sql ------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLILOG-SQL")
def test_sql_answers_as_a_table_as_json_and_as_csv(loom: Loom, data: Path) -> None:
    query = "SELECT topic, count(*) AS many FROM events WHERE topic = 'order.new'"
    assert "order.new" in loom("sql", query, "--data", data).out
    assert loom("sql", query, "--data", data, "--json").lines == [{"topic": "order.new", "many": 3}]
    rows = list(csv.reader(io.StringIO(loom("sql", query, "--data", data, "--csv").out)))
    assert rows == [["topic", "many"], ["order.new", "3"]]
    twice = loom("sql", "SELECT 1 AS a, 2 AS a, x'ff00' AS b", "--data", data, "--json")
    assert twice.lines == [{"a": 1, "a_2": 2, "b": "ff00"}]
    item = "SELECT data ->> 'item' AS item FROM events WHERE topic = 'order.new' ORDER BY n"
    said = loom("sql", item, "--data", data, "--json")
    assert [row["item"] for row in said.lines] == ["milk", "gold", "bread"]


@pytest.mark.requirement("CLILOG-SQL")
def test_sql_shows_a_schema_that_names_every_table(loom: Loom, data: Path) -> None:
    said = loom("sql", "--schema", "--data", data)
    assert said.code == 0
    for table in (
        *("events", "calls", "effects", "runs", "turns", "steps", "threads", "errors", "costs"),
        *("dead_letters", "consumers", "deliveries", "meta"),
    ):
        assert f"CREATE TABLE {table} (" in said.out


@pytest.mark.requirement("CLILOG-SQL")
@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM events",
        "INSERT INTO meta VALUES ('a', 1)",
        "UPDATE events SET topic = 'x'",
        "DROP TABLE events",
        "CREATE TEMP TABLE a (b)",
        "ATTACH '{path}/other.sqlite' AS other",
        "PRAGMA user_version = 5",
        "PRAGMA journal_mode = DELETE",
        "VACUUM INTO '{path}/copy.sqlite'",
        "SELECT load_extension('x')",
        "WITH a AS (SELECT 1) DELETE FROM events",
        "BEGIN IMMEDIATE",
    ],
)
def test_sql_can_change_nothing(loom: Loom, data: Path, tmp_path: Path, query: str) -> None:
    loom("logs", "--data", data)
    file = data / "view" / "default.sqlite"
    before, there = file.read_bytes(), sorted(tmp_path.iterdir())
    said = loom("sql", query.replace("{path}", str(tmp_path)), "--data", data)
    assert said.code in {2, 5}, said
    assert said.out == ""
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.requirement("CLILOG-SQL")
def test_sql_ends_at_its_time_limit_and_names_what_it_does_not_know(loom: Loom, data: Path) -> None:
    endless = "WITH RECURSIVE a(b) AS (SELECT 1 UNION ALL SELECT b + 1 FROM a) SELECT max(b) FROM a"
    said = loom("sql", endless, "--data", data, "--timeout", "0.2")
    assert said.code == 7
    assert "--timeout" in said.err
    said = loom("sql", "SELECT * FROM evnets", "--data", data)
    assert said.code == 2
    assert "close to it: events" in said.err
    said = loom("sql", "SELECT topc FROM events", "--data", data)
    assert "topic" in said.err
    for wrong in ("", "SELECT 1; SELECT 2", "SELEC 1", "-- nothing"):
        assert loom("sql", wrong, "--data", data).code == 2


@pytest.mark.requirement("CLILOG-SQL")
def test_sql_is_ended_by_ctrl_c(data: Path) -> None:
    endless = "WITH RECURSIVE a(b) AS (SELECT 1 UNION ALL SELECT b + 1 FROM a) SELECT * FROM a"
    with started("sql", endless, "--json", "--data", str(data), cwd=data.parent) as sql:
        assert sql.stdout is not None
        sql.stdout.readline()
        sql.send_signal(signal.SIGINT)
        _, err = sql.communicate(timeout=30)
        assert (sql.returncode, err) == (130, "")


@pytest.mark.requirement("CLILOG-VIEW")
def test_the_view_is_an_ordinary_file_for_any_program_that_reads_sqlite(
    loom: Loom, data: Path
) -> None:
    loom("logs", "--data", data)
    with sqlite3.connect(data / "view" / "default.sqlite") as db:
        (count,) = db.execute("SELECT count(*) FROM events WHERE topic = 'sold'").fetchone()
    db.close()
    assert count == 2


# -- backup and restore ---------------------------------------------------------------------------


@pytest.mark.requirement("CLILOG-BACKUP")
def test_a_backup_restores_to_a_log_that_shows_the_same(
    loom: Loom, data: Path, tmp_path: Path
) -> None:
    whole = loom("logs", "--data", data, "--json", "--limit", "0").out
    (told,) = loom("backup", tmp_path / "copy", "--data", data, "--json").lines
    assert told["namespaces"][0]["namespace"] == "default"
    assert told["namespaces"][0]["records"] > 0
    said = loom("restore", tmp_path / "copy", tmp_path / "new")
    assert said.code == 0
    assert "checked" in said.out
    assert loom("logs", "--data", tmp_path / "new", "--json", "--limit", "0").out == whole


@pytest.mark.requirement("CLILOG-BACKUP")
def test_backup_and_restore_refuse_what_is_there_and_what_was_changed(
    loom: Loom, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    assert loom("backup", copy, "--data", data).code == 0
    again = loom("backup", copy, "--data", data)
    assert again.code == 1
    assert "CONFLICT" in again.err
    assert loom("restore", copy, data).code == 1
    flip(next(copy.rglob("*.seg")), at=0.5)
    said = loom("restore", copy, tmp_path / "new")
    assert said.code == 1
    assert not (tmp_path / "new").exists()
    assert loom("backup", tmp_path / "other", "--data", tmp_path / "none").code == 2


@pytest.mark.requirement("CLILOG-BACKUP")
def test_a_backup_that_was_looked_into_can_still_be_restored(
    loom: Loom, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_HOME", str(tmp_path / "home"))
    copy = tmp_path / "copy"
    assert loom("backup", copy, "--data", data).code == 0
    assert "order.new" in loom("logs", "--data", copy).out
    assert loom("effects", "list", "--data", copy).code == 0
    said = loom("snapshot", "--data", copy)
    assert said.code == 2
    assert "loom restore" in said.err
    assert loom("restore", copy, copy / "new").code == 2
    assert loom("restore", copy, tmp_path / "new").code == 0


@pytest.mark.requirement("CLILOG-BACKUP")
@pytest.mark.parametrize("there", ["", ".", "/", "..", "data/copy"])
def test_a_backup_to_no_place_of_its_own_is_refused(
    loom: Loom, data: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    said = loom("backup", there.replace("data", data.name), "--data", data)
    assert said.code in {1, 2}
    assert "hint:" in said.err


# -- dead letters ---------------------------------------------------------------------------------


@pytest.mark.requirement("CLILOG-DLQ")
def test_where_nothing_died_the_list_is_empty_and_an_id_is_not_found(
    loom: Loom, data: Path
) -> None:
    said = loom("dlq", "list", "--data", data)
    assert (said.code, said.out) == (0, "")
    assert "no event was given up" in said.err
    assert loom("dlq", "show", "1.1", "--data", data).code == 4
    assert loom("dlq", "show", "letter", "--data", data).code == 2


DYING = '''
import asyncio

import loom

app = loom.App("shop")
died = asyncio.Event()


@app.agent("clerk", topics=["order.*"])
async def clerk(ctx: loom.Context, event: loom.Event) -> None:
    """Takes orders, but none for gold."""
    if event.data["item"] == "gold":
        await event.term(reason="not for sale")
        return
    await ctx.emit("sold", event.data)


async def main(ctx: loom.Context, args: list[str]) -> None:
    """Order each; nothing waits for them."""
    for item in args:
        await ctx.emit("order.new", {"item": item}, ack="disk")
'''


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """A data directory with two dead letters."""
    (tmp_path / "shop.py").write_text(DYING, encoding="utf-8")
    ran = run_shop(tmp_path, "gold", "milk", "gold")
    assert ran.returncode == 0, ran.stderr
    return tmp_path / "data"


def run_shop(folder: Path, *items: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "loom", "run", "-q", "shop.py", "--data", "data", "--", *items],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.requirement("CLILOG-DLQ")
def test_a_dead_letter_is_listed_shown_and_published_anew_once_with_other_data(
    loom: Loom, dead: Path
) -> None:
    letters = loom("dlq", "list", "--data", dead, "--json").lines
    assert [(letter["agent"], letter["topic"]) for letter in letters] == [
        ("clerk", "order.new")
    ] * 2
    first, second = (letter["id"] for letter in letters)
    shown = loom("dlq", "show", first, "--data", dead)
    assert shown.code == 0
    assert '{"item":"gold"}' in shown.out
    assert "not for sale" in shown.out

    said = loom("dlq", "redrive", first, "--payload", '{"item": "silver"}', "--data", dead)
    assert said.code == 0, said.err
    again = loom("dlq", "redrive", first, "--data", dead)
    assert again.code == 1
    assert "published anew already" in again.err
    assert [one["id"] for one in loom("dlq", "list", "--data", dead, "--json").lines] == [second]

    assert run_shop(dead.parent).returncode == 0
    sold = "SELECT data ->> 'item' AS item FROM events WHERE topic = 'sold' ORDER BY n"
    items = [row["item"] for row in loom("sql", sold, "--data", dead, "--json").lines]
    assert items == ["milk", "silver"]
    assert loom("dlq", "redrive", "--all", "--data", dead).code == 0
    assert loom("dlq", "list", "--data", dead).out == ""


SCANS = '''
import loom

app = loom.App("scans")


@app.agent("shelf", topics=["scan.*"])
async def shelf(ctx: loom.Context, event: loom.Event) -> None:
    """Keeps scans, but none that is not read well."""
    if "?" in event.data:
        await event.term(reason="unreadable")
        return
    await ctx.memory.put("kept", len(event.data))


async def main(ctx: loom.Context, args: list[str]) -> None:
    """Hand in one scan of five mebibytes, or say what was kept."""
    if args:
        await ctx.emit("scan.new", args[0] * (5 << 20), ack="disk")
    else:
        return await ctx.memory.get("kept")
'''


@pytest.mark.requirement("LARGE-EVENT", "CLILOG-DLQ")
def test_a_large_event_is_shown_and_published_anew_from_the_dead(
    loom: Loom, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SCANS, encoding="utf-8")
    ran = run_shop(tmp_path, "?")
    assert ran.returncode == 0, ran.stderr
    data = tmp_path / "data"
    events = loom("logs", "--topic", "scan.new", "--data", data, "--json").lines
    assert [event["bytes"] for event in events] == [(5 << 20) + 2]
    (letter,) = loom("dlq", "list", "--data", data, "--json").lines
    shown = loom("dlq", "show", letter["id"], "--data", data)
    assert shown.code == 0, shown.err
    again = loom("dlq", "redrive", letter["id"], "--data", data)
    assert again.code == 0, again.err
    assert run_shop(tmp_path).returncode == 0
    (letter,) = loom("dlq", "list", "--data", data, "--json").lines
    payload = json.dumps("x" * (6 << 20))
    mended = loom("dlq", "redrive", letter["id"], "--payload", payload, "--data", data)
    assert mended.code == 0, mended.err
    assert run_shop(tmp_path).returncode == 0
    assert loom("dlq", "list", "--data", data).out == ""
    assert run_shop(tmp_path).stdout == f"{6 << 20}\n"


@pytest.mark.requirement("CLILOG-DLQ")
@pytest.mark.parametrize(
    ("words", "code"),
    [([], 2), (["1.1", "--all"], 2), (["9.9"], 4), (["1.1", "1.2", "--payload", "1"], 2)],
)
def test_redrive_refuses_what_it_cannot_do(
    loom: Loom, data: Path, words: list[str], code: int
) -> None:
    assert loom("dlq", "redrive", *words, "--data", data).code == code


@pytest.mark.requirement("CLILOG-DLQ")
def test_beside_a_running_engine_redrive_and_snapshot_say_to_stop_it(
    loom: Loom, dead: Path
) -> None:
    code = "async def main(ctx, args):\n    print('up', flush=True)\n    await died.wait()\n"
    (dead.parent / "up.py").write_text(DYING.split("async def main")[0] + code, encoding="utf-8")
    with started("run", "-q", "up.py", "--data", "data", cwd=dead.parent) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "up\n"
        for words in (["dlq", "redrive", "--all"], ["snapshot"]):
            said = loom(*words, "--data", dead)
            assert said.code == 1
            assert str(app.pid) in said.err
            assert "stop the app" in said.err
        app.send_signal(signal.SIGINT)
        app.communicate(timeout=30)
    assert loom("snapshot", "--data", dead).code == 0


# -- effects --------------------------------------------------------------------------------------

PAYING = '''
import asyncio
import os

import loom

app = loom.App("shop")
up = asyncio.Event()


@app.capability("card.charge", effect="unsafe", timeout=20)
async def charge(item: str) -> str:
    """Charge for an item; gold takes the process with it, and what it paid for is not known."""
    if item == "gold":
        os.kill(os.getpid(), 9)
    return "paid"


async def main(ctx: loom.Context, args: list[str]) -> None:
    for item in args:
        print(await ctx.tool(charge.bind(item=item), key=item), flush=True)
    if not args:
        await up.wait()
'''


@pytest.fixture
def charged(tmp_path: Path) -> Path:
    """A data directory with an effect that was done and one that nobody knows of."""
    (tmp_path / "shop.py").write_text(PAYING, encoding="utf-8")
    ran = run_shop(tmp_path, "milk", "gold")
    assert (ran.returncode, ran.stdout) == (-signal.SIGKILL, "paid\n"), ran.stderr
    return tmp_path / "data"


@pytest.mark.requirement("EFFECT-CLI")
def test_effects_of_a_killed_app_are_listed_and_shown_and_what_it_had_begun_is_unknown(
    loom: Loom, charged: Path
) -> None:
    listed = loom("effects", "list", "--data", charged, "--json").lines
    assert [(one["key"], one["state"]) for one in listed] == [
        ("milk", "confirmed"),
        ("gold", "unknown"),
    ]
    (gold,) = loom("effects", "list", "--unknown", "--data", charged, "--json").lines
    assert gold == listed[1]
    assert (gold["capability"], gold["effect"]) == ("card.charge", "unsafe")
    text = loom("effects", "list", "--data", charged)
    assert text.code == 0
    assert "card.charge" in text.out
    shown = loom("effects", "show", gold["id"][-8:], "--data", charged)
    assert shown.code == 0
    assert gold["id"] in shown.out
    assert "the engine ended before its outcome" in shown.out
    milk = loom("effects", "show", listed[0]["id"], "--data", charged, "--json").lines[0]
    assert (milk["result"], milk["code"]) == ('"paid"', "OK")


@pytest.mark.requirement("EFFECT-CLI", "EFFECT-RESOLVE")
def test_an_effect_that_was_done_is_resolved_once_and_its_key_is_given_the_result(
    loom: Loom, charged: Path
) -> None:
    (gold,) = loom("effects", "list", "--unknown", "--data", charged, "--json").lines
    words = ["effects", "resolve", gold["id"]]
    said = loom(*words, "--done", "--result", '"by hand"', "--note", "seen", "--data", charged)
    assert said.code == 0, said.err
    assert "reconciled" in said.out
    again = loom(*words, "--failed", "--data", charged)
    assert again.code == 1
    assert "not unknown" in again.err
    assert loom("effects", "list", "--unknown", "--data", charged).out == ""
    shown = loom("effects", "show", gold["id"], "--data", charged, "--json").lines[0]
    assert (shown["state"], shown["by"], shown["note"]) == ("reconciled", "operator", "seen")
    assert run_shop(charged.parent, "gold").stdout == "by hand\n"


@pytest.mark.requirement("EFFECT-CLI", "EFFECT-RESOLVE")
def test_an_effect_that_was_not_done_is_done_by_the_next_call_with_its_key(
    loom: Loom, charged: Path
) -> None:
    (gold,) = loom("effects", "list", "--unknown", "--data", charged, "--json").lines
    before = run_shop(charged.parent, "gold")
    assert before.returncode > 0
    assert "INDETERMINATE" in before.stderr
    said = loom("effects", "resolve", gold["id"], "--failed", "--data", charged, "--json")
    assert said.lines == [{"id": gold["id"], "state": "failed"}]
    shop = charged.parent / "shop.py"
    shop.write_text(PAYING.replace("os.kill(os.getpid(), 9)", "pass"), encoding="utf-8")
    assert run_shop(charged.parent, "gold").stdout == "paid\n"


@pytest.mark.requirement("EFFECT-CLI")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "0123456789"], 4),
        (["resolve", "0123456789", "--done"], 4),
        (["resolve", "0123456789"], 2),
        (["resolve", "0123456789", "--done", "--result", "{"], 2),
        (["resolve", "0123456789", "--failed", "--result", "1"], 2),
    ],
)
def test_effects_refuses_what_it_cannot_do(
    loom: Loom, data: Path, words: list[str], code: int
) -> None:
    assert loom("effects", *words, "--data", data).code == code


@pytest.mark.requirement("EFFECT-CLI")
def test_beside_a_running_engine_effects_are_listed_and_resolve_says_what_to_do(
    loom: Loom, charged: Path
) -> None:
    with started("run", "-q", "shop.py", "--data", "data", cwd=charged.parent) as app:
        deadline = time.monotonic() + 30
        listed: list[dict[str, Any]] = []
        while time.monotonic() < deadline and app.poll() is None:
            listed = loom("effects", "list", "--unknown", "--data", charged, "--json").lines
            if listed and listed[0]["by"] == "recovery":
                break
        (gold,) = listed
        assert gold["by"] == "recovery"
        said = loom("effects", "resolve", gold["id"], "--done", "--data", charged)
        assert said.code == 1
        assert str(app.pid) in said.err
        assert "app.effects.resolve" in said.err
        app.send_signal(signal.SIGINT)
        app.communicate(timeout=30)


# -- help -----------------------------------------------------------------------------------------


@pytest.mark.requirement("CLILOG-HELP")
@pytest.mark.parametrize(
    "words",
    [
        *(["logs"], ["runs"], ["runs", "show"], ["sql"], ["backup"], ["restore"]),
        *(["dlq"], ["dlq", "list"], ["dlq", "show"], ["dlq", "redrive"], ["snapshot"]),
        *(["effects"], ["effects", "list"], ["effects", "show"], ["effects", "resolve"]),
    ],
)
def test_the_help_of_each_command_has_examples_each_on_a_line_of_its_own(
    loom: Loom, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = loom(*words, "--help")
    assert said.code == 0
    lines = said.out.splitlines()
    examples = lines[lines.index("  Examples:") + 1 :]
    assert examples
    assert all(line.startswith(f"    loom {words[0]} ") for line in examples)
    assert any(line.startswith(f"    loom {' '.join(words)}") for line in examples)


@pytest.mark.requirement("CLILOG-HELP")
@pytest.mark.parametrize("name", ["emit", "call", "watch", "list", "sessions", "stats", "drain"])
def test_the_help_of_commands_about_a_node_speaks_of_no_directory(loom: Loom, name: str) -> None:
    said = " ".join(loom(name, "--help").out.split())
    assert "`local`: the one that runs for you" in said
    assert "directory" not in said
    assert "Whose log" not in said


@pytest.mark.requirement("CLILOG-HELP")
def test_who_names_no_place_is_told_of_the_node_where_the_command_can_ask_one(
    loom: Loom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, is_told in (
        (["logs"], 1),
        (["runs"], 1),
        (["list", "agents"], 1),
        (["sql", "x"], 0),
    ):
        said = loom(*words)
        assert said.code == 2
        assert ("--url local" in said.err) == bool(is_told), said.err
    said = loom("list", "agents", "app.py", "--url", "local")
    assert said.code == 2
    assert "two places" in said.err


@pytest.mark.requirement("CLILOG-TERMINAL")
def test_what_is_said_below_a_table_has_the_place_that_was_named(narrow: Loom, data: Path) -> None:
    said = narrow("runs", "--data", data, "--namespace", "default")
    assert f"with --data {data} --namespace default" in " ".join(said.err.split())
    assert Where(None, None, "unix:///a b").again == "--url 'unix:///a b'"


@pytest.mark.requirement("CLILOG-HELP")
def test_the_list_of_commands_cuts_no_sentence_on_a_narrow_terminal(
    loom: Loom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["runs"], ["dlq"], ["effects"]):
        assert "..." not in loom(*words, "--help").out.partition("Commands:")[2]


# -- on a terminal --------------------------------------------------------------------------------


@pytest.fixture
def narrow(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> Loom:
    """Run a command on a terminal of 80 columns that shows no styles."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(Console, "is_dumb_terminal", property(lambda _: False))
    monkeypatch.setattr(Console, "is_terminal", property(lambda _: False))

    def run(*words: str | Path) -> Said:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "80")
        return loom(*words)

    return run


@pytest.mark.requirement("CLILOG-TERMINAL")
def test_a_line_of_each_run_fits_a_narrow_terminal_and_its_id_goes_into_the_next_command(
    narrow: Loom, data: Path
) -> None:
    lines = narrow("runs", "--data", data).out.splitlines()
    assert len(lines) == 4  # the heading, and three runs
    assert max(map(len, lines)) <= 80
    for line in lines[1:]:
        assert narrow("runs", "show", line.split()[0], "--data", data).code == 0


@pytest.mark.requirement("CLILOG-TERMINAL")
def test_the_id_of_an_event_as_logs_shows_it_is_one_that_why_takes(
    narrow: Loom, loom: Loom, data: Path
) -> None:
    lines = narrow("logs", "--data", data, "--topic", "sold").out.splitlines()
    assert len(lines) == 2
    for line in lines:
        said = loom("why", line.split()[1], "--data", data)
        assert said.code == 0
        assert "order.new" in said.out


@pytest.mark.requirement("CLILOG-TERMINAL")
def test_logs_on_a_terminal_cuts_what_is_long_but_never_an_error(narrow: Loom, data: Path) -> None:
    lines = narrow("logs", "--data", data).out.splitlines()
    assert max(map(len, lines)) <= 80
    errors = " ".join(narrow("logs", "--data", data, "--level", "error").out.split())
    assert "…" not in errors
    assert errors.count("prices.get raised ValueError") == 3


@pytest.mark.requirement("CLILOG-TERMINAL")
def test_rows_that_are_too_wide_for_a_terminal_become_blocks_with_a_line_for_each_cell(
    narrow: Loom, data: Path
) -> None:
    said = narrow("sql", "SELECT * FROM events WHERE topic = 'sold'", "--data", data)
    assert max(map(len, said.out.splitlines())) <= 80
    assert sum(line.split() == ["topic", "sold"] for line in said.out.splitlines()) == 2


@pytest.mark.requirement("CLILOG-LOGS")
def test_logs_says_so_when_nothing_is_as_asked(loom: Loom, data: Path) -> None:
    for limit in ("0", "10"):
        said = loom("logs", "--data", data, "--agent", "nobody", "--limit", limit)
        assert (said.code, said.out) == (0, "")
        assert "nothing" in said.err


@pytest.mark.requirement("CLILOG-TERMINAL")
def test_a_result_on_a_terminal_is_broken_between_words_and_elsewhere_is_as_it_was(
    loom: Loom, narrow: Loom, tmp_path: Path
) -> None:
    app = tmp_path / "words.py"
    words = " ".join(["seventeen"] * 20)
    app.write_text(
        "import loom\n\napp = loom.App('words')\n\n"
        f"async def main(ctx: loom.Context, args: list[str]) -> str:\n    return {words!r}\n",
        encoding="utf-8",
    )
    assert loom("run", "-q", app).out == f"{words}\n"
    lines = narrow("run", "-q", app).out.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines) == words


@pytest.mark.requirement("CLILOG-TERMINAL")
def test_a_run_that_was_logged_names_the_commands_that_look_into_it(
    loom: Loom, tmp_path: Path
) -> None:
    app = tmp_path / "shop.py"
    app.write_text(APP, encoding="utf-8")
    said = loom("run", app, "--data", tmp_path / "data", "--", "milk")
    named = [line.split() for line in said.err.splitlines() if line.startswith("  loom ")]
    assert [words[1] for words in named] == ["runs", "logs", "replay", "why"]
    for words in named:
        assert loom(*words[1:]).code == 0
