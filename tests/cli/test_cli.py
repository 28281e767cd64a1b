"""The command line, run as a person runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

APP = '''
import loom

app = loom.App("shop")


@app.capability("prices.get", effect="pure", timeout=5)
async def price(item: str) -> float:
    """Look up a price."""
    return 1.5


@app.agent("clerk", topics=["order.*"])
async def clerk(ctx: loom.Context, event: loom.Event) -> object:
    """Takes orders."""
    asked = await ctx.tool(price.bind(item="a"))
    await ctx.emit("sold", {"text": "evil \\x1b[31mred\\x07", "price": asked})
    return "sold"
'''
MAIN = """

async def main(ctx: loom.Context, args: list[str]) -> object:
    answer = await ctx.request("order.new", args)
    return answer.data
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP + MAIN, encoding="utf-8")
    (tmp_path / "server.py").write_text(APP, encoding="utf-8")
    (tmp_path / "synmain.py").write_text(APP + "def main(ctx, args): ...\n", encoding="utf-8")
    (tmp_path / "noargs.py").write_text(APP + "async def main(): ...\n", encoding="utf-8")
    return tmp_path


def loom(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loom", *args],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.timeout(70)
@pytest.mark.requirement("CLI-RUN")
def test_run_shows_events_on_stderr_and_prints_the_result(shop: Path) -> None:
    done = loom("run", "shop.py", "--", "milk", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sold\n"
    assert "order.new" in done.stderr
    assert "shop" in done.stderr
    assert "prices.get" in done.stderr
    assert "P99" in done.stderr
    (figures,) = [line for line in done.stderr.splitlines() if "dropped in" in line]
    assert figures.endswith(" s")  # nothing failed, nothing was tried again
    assert "\x1b" not in done.stderr.replace("\\x1b", "")
    assert "\x07" not in done.stderr


@pytest.mark.timeout(70)
@pytest.mark.requirement("CLI-RUN")
def test_run_as_json_prints_one_object_a_line(shop: Path) -> None:
    done = loom("run", "shop.py", "--json", "--", "milk", cwd=shop)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    events = [entry for entry in told if entry["type"] == "event"]
    topics = [e["topic"] for e in events if not e["topic"].startswith(("loom.", "thread."))]
    assert topics == ["order.new", "sold"]
    assert [entry["result"] for entry in told if entry["type"] == "result"] == ["sold"]
    (figures,) = [entry for entry in told if entry["type"] == "figures"]
    assert figures["calls"] == 1
    assert figures["errors"] == figures["dropped"] == 0
    assert {agent["name"] for agent in figures["agents"]} == {"clerk"}


@pytest.mark.timeout(70)
@pytest.mark.requirement("CLI-RUN")
def test_run_quietly_prints_only_the_result(shop: Path) -> None:
    done = loom("run", "-q", "shop:app", "--", "milk", cwd=shop)
    assert (done.returncode, done.stdout, done.stderr) == (0, "sold\n", "")


@pytest.mark.timeout(70)
@pytest.mark.requirement("CLI-RUN")
def test_an_app_without_main_runs_until_ctrl_c(shop: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "loom", "run", "server.py"],
        cwd=shop,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "Ctrl-C" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.timeout(70)
@pytest.mark.requirement("CLI-LIST")
def test_list_names_agents_topics_and_capabilities(shop: Path) -> None:
    agents = loom("list", "agents", "shop.py", cwd=shop)
    assert agents.returncode == 0, agents.stderr
    assert "clerk" in agents.stdout
    assert "Takes orders." in agents.stdout
    topics = loom("list", "topics", "shop.py", "--json", cwd=shop)
    assert json.loads(topics.stdout) == {"topic": "order.*", "agents": ["clerk"]}
    capabilities = loom("list", "capabilities", "shop:app", "--json", cwd=shop)
    assert json.loads(capabilities.stdout) == {
        "name": "prices.get",
        "version": "1",
        "effect": "pure",
        "timeout": 5,
        "provider": "shop",
        "description": "Look up a price.",
    }


@pytest.mark.timeout(70)
@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["run"], 2, "no app was named"),
        (["run", "missing.py"], 4, "no file"),
        (["run", "."], 4, "folder"),
        (["run", ":app"], 4, "folder"),
        (["run", "synmain.py"], 2, "async def main"),
        (["run", "noargs.py"], 2, "async def main"),
        (["run", "missing:app"], 4, "no module"),
        (["run", "shop:nothing"], 2, "no App"),
        (["run", "server.py", "--", "more"], 2, "no arguments"),
        (["list", "agents", "missing.py"], 4, "no file"),
        (["list", "everything", "shop.py"], 2, "everything"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_use_says_what_is_wrong(shop: Path, args: list[str], code: int, told: str) -> None:
    done = loom(*args, cwd=shop)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(70)
def test_a_target_can_stand_in_loom_toml(shop: Path) -> None:
    (shop / "loom.toml").write_text('[app]\ntarget = "shop:app"\n', encoding="utf-8")
    assert loom("run", "-q", cwd=shop).stdout == "sold\n"
    (shop / "loom.toml").write_text('[app]\ntraget = "shop:app"\n', encoding="utf-8")
    wrong = loom("run", "-q", cwd=shop)
    assert (wrong.returncode, "app.traget" in wrong.stderr) == (2, True)


@pytest.mark.timeout(70)
def test_one_ctrl_c_ends_an_app_whose_handler_hangs(shop: Path) -> None:
    body = APP + HANGS
    (shop / "hangs.py").write_text(body, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "loom", "run", "hangs.py"],
        cwd=shop,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any("hang" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cut off" in err
    assert "Traceback" not in err


HANGS = """

@app.agent("hangs", topics=["hang"])
class Hangs(loom.Agent):
    async def on_start(self, ctx: loom.Context) -> None:
        await ctx.emit("hang")

    async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
        import asyncio
        await asyncio.get_running_loop().create_future()
"""


@pytest.mark.timeout(70)
def test_an_error_of_the_users_module_shows_its_own_frames_only(shop: Path) -> None:
    (shop / "broken.py").write_text("import loom\n\n1 / 0\n", encoding="utf-8")
    done = loom("run", "broken.py", cwd=shop)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert done.stderr.count("File ") == 1


@pytest.mark.timeout(70)
def test_a_file_may_be_called_as_a_module_and_hold_several_apps(shop: Path) -> None:
    (shop / "loom.py").write_text((shop / "shop.py").read_text(encoding="utf-8"), encoding="utf-8")
    assert loom("list", "topics", str(shop / "loom.py"), cwd=shop.parent).returncode == 0
    (shop / "loom.py").unlink()
    (shop / "two.py").write_text(
        'import loom\n\na = loom.App("a")\nb = loom.App("b")\n', encoding="utf-8"
    )
    done = loom("run", "two.py", cwd=shop)
    assert done.returncode == 2
    assert "a, b" in done.stderr


@pytest.mark.timeout(70)
def test_a_relative_target_stands_beside_its_loom_toml(shop: Path) -> None:
    (shop / "below").mkdir()
    for target in ("shop.py", "shop:app"):
        (shop / "loom.toml").write_text(f'[app]\ntarget = "{target}"\n', encoding="utf-8")
        done = loom("run", "-q", "--", "milk", cwd=shop / "below")
        assert (done.returncode, done.stdout) == (0, "sold\n"), done.stderr


@pytest.mark.timeout(70)
@pytest.mark.skipif(sys.platform == "win32", reason="pipes break in another way there")
def test_a_reader_that_leaves_ends_it_without_a_word(shop: Path) -> None:
    command = f"{sys.executable} -m loom run shop.py --json -- milk | head -n 1"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=shop,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


STATS = """
import loom

app = loom.App("counts")


@app.agent("reads", topics=["read"])
async def reads(ctx: loom.Context, event: loom.Event) -> int:
    return app.stats()["gauges"]["sessions"]


async def main(ctx: loom.Context, args: list[str]) -> int:
    assert app.stats()["gauges"]["sessions"] == 1
    return (await ctx.request("read")).data
"""


@pytest.mark.timeout(70)
def test_stats_can_be_read_by_handlers_and_main(shop: Path) -> None:
    (shop / "counts.py").write_text(STATS, encoding="utf-8")
    done = loom("run", "-q", "counts.py", cwd=shop)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert loom("--version", cwd=tmp_path).stdout == "loom 0.1.0a1\n"


@pytest.mark.timeout(70)
@pytest.mark.requirement("CRASH-START")
def test_run_names_an_agent_that_does_not_start_with_its_stack_and_goes_on(shop: Path) -> None:
    (shop / "broken.py").write_text(
        APP
        + """

@app.agent("broken", topics=["never"])
class Broken(loom.Agent):
    async def on_start(self, ctx: loom.Context) -> None:
        raise RuntimeError("no database")

    async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...
"""
        + MAIN,
        encoding="utf-8",
    )
    done = loom("run", "--quiet", "broken.py", cwd=shop)
    assert (done.returncode, done.stdout) == (0, "sold\n")
    assert "agent 'broken' crashed: on_start raised RuntimeError; crash 1 of 5" in done.stderr
    assert 'raise RuntimeError("no database")' in done.stderr


UNWELL = """
import loom
from loom.errors import ProviderUnavailable

app = loom.App("unwell")
asked = []


@app.capability("geo.lookup", effect="pure")
async def lookup() -> str:
    asked.append(1)
    if len(asked) <= 30:
        raise ProviderUnavailable("no maps", retry=len(asked) == 1)
    return "here"


@app.agent("loop", topics=["go"])
class Loop(loom.Agent):
    async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
        raise SystemExit

    @loom.capability("loop.size", effect="pure")
    async def size(self) -> int:
        return 0


@app.agent("careless", topics=["slip"])
async def careless(ctx: loom.Context, event: loom.Event) -> None:
    raise loom.errors.ToolError("slipped")


async def until(events, topic, health) -> None:
    async for event in events:
        if event.topic == f"loom.directory.{topic}.changed" and event.data["health"] == health:
            return


async def main(ctx: loom.Context, args: list[str]) -> str:
    async with ctx.watch("loom.directory.>") as events:
        await ctx.emit("slip")
        for _ in range(5):
            await ctx.emit("go")
        await until(events, "agent", "quarantined")
        app.release("loop")
        await until(events, "agent", "up")
        while True:
            try:
                return await ctx.tool(lookup.bind())
            except ProviderUnavailable as error:
                if error.retry_after:
                    asked.extend([1] * 30)
                    await ctx.sleep(error.retry_after)
"""


@pytest.mark.timeout(70)
@pytest.mark.requirement("CLI-HEALTH")
def test_run_shows_how_agents_and_providers_fare_and_counts_what_failed(shop: Path) -> None:
    (shop / "unwell.py").write_text(UNWELL, encoding="utf-8")
    done = loom("run", "unwell.py", cwd=shop)
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
    lines = [line.partition(" ")[2].rstrip() for line in done.stderr.splitlines()]
    agent = [line.removeprefix("agent loop ") for line in lines if line.startswith("agent loop ")]
    assert agent == [*["restarting", "up again"] * 4, "quarantined", "restarting", "up again"]
    provider = [line for line in lines if line.startswith("geo.lookup ") and "(of" in line]
    told = [f"geo.lookup {health} (of unwell)" for health in ("ejected", "probing", "up again")]
    assert provider == told
    assert not any(line.startswith("loop.size") for line in lines)  # it goes with its agent
    assert "loom.directory" not in done.stderr
    (figures,) = [line for line in done.stderr.splitlines() if "dropped in" in line]
    assert figures.endswith(" s, 6 turns failed, 1 retried")
