"""A node as its user runs it: `loom up` in a process of its own, and programs that reach it."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.address import PORT, read_token
from loom.cli.up import plan_of
from loom.config import LogConfig
from loom.errors import Denied, InvalidParams, LoomError, Unauthenticated, Unavailable
from loom.limits import CONNECT_SECONDS
from loom.link import open_local
from loom.node.node import Plan, hosting

pytestmark = [pytest.mark.timeout(90)]

APP = '''
import loom

app = loom.App("hello")


@app.agent("greeter", topics=["greet.>"])
async def greeter(ctx, event):
    """Greet whoever is named."""
    return f"Hello, {event.data}"


@app.capability("twice", effect="pure")
async def twice(n: int) -> int:
    """Double it."""
    return 2 * n


@app.capability("count", effect="pure")
async def count(n: int):
    for i in range(n):
        yield i


async def main(ctx, args):
    return (await ctx.request("greet.once", args[0])).data
'''


class Running:
    """A node in a process of its own, and how its user's programs run."""

    def __init__(self, home: Path, *words: str, **variables: str) -> None:
        self.home = home
        self.variables = {**_plain(), "LOOM_HOME": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loom", "up", "--json", *words],
            env={**self.variables, **variables},
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.told: dict[str, Any] = json.loads(line)
        self.url: str = next(url for url in self.told["urls"] if url.startswith("loom"))
        self.token = read_token(Path(self.told["token_file"]))

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of this user."""
        return subprocess.run(
            [sys.executable, "-m", "loom", *words],
            env={**self.variables, **variables},
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def lines(self, *words: str) -> list[Any]:
        """Run a command that goes well; return the objects that it prints."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


def _plain() -> Mapping[str, str]:
    kept = ("PATH", "PYTHONPATH", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    home = tmp_path_factory.mktemp("n")
    (home / "hello.py").write_text(APP)
    words = ("--data", "data", "--bind", "127.0.0.1:0", "--unix", "s")
    running = Running(home, *words)
    yield running
    running.stop(signal.SIGKILL)


def hello() -> loom.App:
    app = loom.App("hello")

    @app.agent("greeter", topics=["greet.>"])
    async def greeter(ctx: loom.Context, event: loom.Event) -> str:
        return f"Hello, {event.data}"

    @app.capability("twice", effect="pure")
    async def twice(n: int) -> int:
        return 2 * n

    @app.capability("count", effect="pure")
    async def count(n: int) -> Any:
        for i in range(n):
            yield i

    return app


@pytest.mark.requirement("NODE-UP")
def test_a_node_says_where_it_is_in_a_private_file(node: Running) -> None:
    told = dict(node.told)
    assert told.pop("type") == "up"
    file = node.home / "run" / "node.json"
    assert json.loads(file.read_text()) == told
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(told["token_file"]).stat().st_mode) == 0o600
    assert told["pid"] == node.process.pid
    assert told["urls"][0] == f"unix://{node.home}/s"
    assert not node.url.endswith(":0")
    assert node.token not in Path(f"/proc/{node.process.pid}/cmdline").read_text()


@pytest.mark.requirement("NODE-UP")
@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--bind", "0.0.0.0:0"), "bind"),
        (("--bind", "[::]:0"), "bind"),
        (("--bind", "nowhere"), "bind"),
        (("--tls-cert", "x.pem"), "tls_key"),
        (("--tls-client-ca", "x.pem"), "tls_client_ca"),
    ],
)
def test_a_node_that_would_be_exposed_or_cannot_work_is_refused(
    words: tuple[str, ...], field: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loom", "up", *words],
        env={**_plain(), "LOOM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert f"field: {field}" in done.stderr
    assert not list(tmp_path.iterdir())


def planned(data: str | None = None, **more: Any) -> Plan:
    options: dict[str, Any] = {"bind": ("127.0.0.1:0",), **more}
    return plan_of(data, **options)


@pytest.mark.requirement("NODE-UP")
@pytest.mark.parametrize(
    ("options", "field", "hint"),
    [
        ({"data": "taken"}, "data", "another directory"),
        ({"data": "closed/data"}, "data", "--data DIR"),
        ({"bind": ("192.0.2.1:7",), "insecure": True}, "bind", "no address of this machine"),
        ({"unix": Path("no/such/socket")}, "unix", "folder that is there"),
        ({"tls_cert": Path("x.pem"), "tls_key": Path("x.key")}, "tls_key", ""),
        ({"origins": ("x",)}, "origins", "https://"),
    ],
)
async def test_what_keeps_a_node_from_running_is_told_with_the_way_out(
    options: dict[str, Any], field: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOM_HOME", str(tmp_path / "home"))
    (tmp_path / "closed").mkdir()
    really = os.access

    def access(path: Path, how: int) -> bool:
        return path.name != "closed" and really(path, how)

    monkeypatch.setattr(os, "access", access)
    already = open_local(log=LogConfig(dir=tmp_path / "taken"))
    try:
        with pytest.raises(LoomError) as refused:
            async with hosting(planned(**options)):
                pass
    finally:
        await already.close()
    assert refused.value.field == field
    assert hint in (refused.value.hint or "")


@pytest.mark.requirement("NODE-UP")
async def test_a_folder_of_the_user_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOOM_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with pytest.raises(Denied) as refused:
        async with hosting(plan_of(None, bind=("127.0.0.1:0",))):
            pass
    assert refused.value.field == "LOOM_HOME"


@pytest.mark.requirement("NODE-CLI")
def test_a_token_that_is_not_good_is_told_once_with_the_way_out(node: Running) -> None:
    done = node.run("stats", LOOM_TOKEN="loom_" + "x" * 43)
    assert done.returncode == 5
    assert "field: token" in done.stderr
    assert "loom token list" in done.stderr
    assert done.stderr.count("no such credential") == 1
    assert "--token-file" in node.run("emit", "a.b", "--url", "loom://127.0.0.1:1").stderr


@pytest.mark.requirement("NODE-UP")
def test_where_the_usual_port_is_taken_a_node_takes_another_and_a_named_one_is_refused(
    tmp_path: Path,
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody has it already
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        running = Running(tmp_path)
        assert not running.url.endswith(f":{PORT}")
        done = running.run("up", "--bind", f"127.0.0.1:{PORT}")
        assert done.returncode == 6, done.stderr
        assert "field: bind" in done.stderr
        assert running.stop() == 128 + signal.SIGTERM


@pytest.mark.requirement("NODE-CLI")
def test_a_command_says_when_nobody_answers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loom", "emit", "a.b", "--url", "loom://127.0.0.1:1"],
        env={**_plain(), "LOOM_HOME": str(tmp_path), "LOOM_TOKEN": "loom_" + "x" * 43},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 6, done.stderr
    assert "loom up" in done.stderr


@pytest.mark.requirement("NODE-UP")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_node_and_leaves_no_word_of_it(number: int, tmp_path: Path) -> None:
    running = Running(tmp_path, "--bind", "127.0.0.1:0")
    assert running.told["data"] is None
    assert running.stop(number) == 128 + number
    assert not (tmp_path / "run" / "node.json").exists()
    done = running.run("emit", "a.b")
    assert done.returncode == 4
    assert "no node runs" in done.stderr


@pytest.mark.requirement("NODE-UP")
def test_a_second_node_says_how_to_reach_which_of_the_two(tmp_path: Path) -> None:
    first = Running(tmp_path, "--data", "data", "--bind", "127.0.0.1:0")
    refused = first.run("up", "--data", "./data", "--bind", "127.0.0.1:0")
    assert refused.returncode == 1
    assert f"listens on {first.url}" in refused.stderr
    assert "loom run APP --url local" in refused.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "loom", "up", "--data", "other", "--bind", "127.0.0.1:0"],
        env=first.variables,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as second:
        assert second.stdout is not None
        told = "".join(iter(second.stdout.readline, "Ctrl-C stops it\n"))
        assert "--url local" not in told  # that is the first one
        (export,) = (line for line in told.splitlines() if "export" in line)
        words = f"{export}; {sys.executable} -m loom stats"
        stats = subprocess.run(
            ["sh", "-c", words], env=first.variables, cwd=tmp_path, capture_output=True, check=False
        )
        assert stats.returncode == 0, stats.stderr
        second.send_signal(signal.SIGTERM)
        assert "WARNING" not in second.communicate(timeout=30)[1]
    first.stop()


@pytest.mark.requirement("NODE-UP")
def test_a_node_ends_well_when_its_operator_says_so(tmp_path: Path) -> None:
    running = Running(tmp_path, "--bind", "127.0.0.1:0")
    done = running.run("drain")
    assert done.returncode == 0, done.stderr
    running.process.communicate(timeout=30)
    assert running.process.returncode == 0


@pytest.mark.requirement("NODE-LIGHT")
@pytest.mark.parametrize("with_arguments", [False, True])
async def test_a_node_loads_what_checks_arguments_once_an_operator_gives_some(
    with_arguments: bool, tmp_path: Path
) -> None:
    words = ("--data", "data", "--bind", "127.0.0.1:0", "--host", "node.example.org")
    running = Running(tmp_path, *words, PYTHONPROFILEIMPORTTIME="1")
    try:
        async with loom.connect(running.url, token=running.token) as ctx:
            logs = (await ctx.capabilities("loom.node.logs"))[0]
            assert logs.input["properties"]["limit"]["type"] == "integer"
            assert len(await ctx.tool("loom.node.sessions")) == 2
            if with_arguments:
                await ctx.tool("loom.node.list", args={"kind": "agents"})
    finally:
        running.process.terminate()
        _, told = running.process.communicate(timeout=30)
    imported = {line.rsplit("|", 1)[-1].strip() for line in told.splitlines()}
    assert "loom.node.control" in imported
    assert ("pydantic" in imported) is with_arguments
    assert "rich" not in imported


@pytest.mark.requirement("NODE-LIGHT")
@pytest.mark.skipif(sys.platform != "linux", reason="no other system says it")
def test_a_node_asks_for_no_huge_pages(node: Running) -> None:
    """Each thread that allocates a little would hold 2 MiB."""
    maps = Path(f"/proc/{node.process.pid}/smaps").read_text().splitlines()
    flags = [line.split()[1:] for line in maps if line.startswith("VmFlags:")]
    assert flags
    assert not any("hg" in of_one for of_one in flags)


@pytest.mark.requirement("BRIDGE-APP")
@pytest.mark.parametrize("carrier", ["loom", "ws", "unix"])
async def test_an_app_runs_at_a_node_as_it_does_alone(node: Running, carrier: str) -> None:
    url = node.told["urls"][0] if carrier == "unix" else node.url.replace("loom", carrier, 1)
    async with (
        hello().running(url=url, token=node.token),
        loom.connect(url, token=node.token, name="person") as ctx,
    ):
        assert (await ctx.request("greet.once", "Ada")).data == "Hello, Ada"
        assert await ctx.tool("twice", args={"n": 21}) == 42
        async with ctx.stream("count", args={"n": 40}) as numbers:
            assert [n async for n in numbers] == list(range(40))
        async with ctx.watch("news.>") as events:
            receipt = await ctx.emit("news.today", {"a": 1})
            event = await anext(events)
        assert (event.id, event.data, event.sender) == (receipt.id, {"a": 1}, "default/person")
        assert "greeter" in [agent.name for agent in await ctx.agents()]
        assert "twice" in [one.name for one in await ctx.capabilities()]
        with pytest.raises(LoomError) as absent:
            await ctx.tool("thrice", args={})
        assert absent.value.code == "NOT_FOUND"


@pytest.mark.requirement("BRIDGE-APP")
async def test_states_and_memory_of_an_app_are_kept_by_its_node(node: Running) -> None:
    app = loom.App("keeper")

    @app.agent("adder", topics=["add.*"])
    class Adder(loom.Agent[dict[str, int]]):
        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
            ctx.state["sum"] = ctx.state.get("sum", 0) + event.data
            await ctx.memory.put("last", event.data)
            await ctx.emit("sum.now", ctx.state["sum"])

    sums: list[int] = []
    for _ in range(2):
        async with app.running(url=node.url, token=node.token) as ctx:
            async with ctx.watch("sum.now", qos="batched") as events:
                for number in (1, 2):
                    await ctx.emit("add.up", number, key="k", ack="disk")
                    sums.append((await anext(events)).data)
            assert await ctx.memory.get("last") == 2
    assert sums == [1, 3, 4, 6]


@pytest.mark.requirement("BRIDGE-APP")
async def test_the_namespace_of_a_token_is_where_its_clients_are(node: Running) -> None:
    (made,) = node.lines("token", "create", "guest", "--namespace", "guests", "--all", "--json")
    async with loom.connect(node.url, token=made["token"]) as ctx:
        assert ctx.namespace == "guests"
        async with ctx.watch(">") as events:
            await ctx.emit("hello.guests", 1)
            assert (await anext(events)).sender == "guests/client"
    with pytest.raises(Denied):
        async with loom.connect(node.url, token=made["token"], namespace="default"):
            pass


@pytest.mark.requirement("BRIDGE-CREDENTIAL")
async def test_without_a_good_token_nobody_gets_in(node: Running) -> None:
    wrong = "loom_" + "x" * 43
    with pytest.raises(Unauthenticated) as refused:
        async with loom.connect(node.url, token=wrong):
            pass
    assert wrong not in str(refused.value)
    with pytest.raises(InvalidParams):
        async with hello().running(url=node.url, token=node.token, data="x"):
            pass


@pytest.mark.requirement("BRIDGE-CREDENTIAL")
async def test_who_loses_the_token_loses_the_session_within_seconds(node: Running) -> None:
    (made,) = node.lines("token", "create", "short", "--subscribe", ">", "--json")
    app = loom.App("short")
    async with app.running(url=node.url, token=made["token"]) as ctx:
        async with ctx.watch("loom.link.*") as events:
            await asyncio.to_thread(node.run, "token", "revoke", made["id"])
            async with asyncio.timeout(5):
                event = await anext(events)
        assert event.topic == "loom.link.closed"
        assert app.stats()["link"]["state"] == "closed"
    assert made["id"] not in {one["id"] for one in node.lines("token", "list", "--json")}


@pytest.mark.requirement("BRIDGE-CREDENTIAL")
async def test_who_listens_is_told_that_the_token_was_revoked(node: Running) -> None:
    (made,) = node.lines("token", "create", "short", "--subscribe", ">", "--json")
    async with loom.connect(node.url, token=made["token"]) as ctx, ctx.watch("order.>") as events:
        await asyncio.to_thread(node.run, "token", "revoke", made["id"])
        with pytest.raises(Unauthenticated) as told:
            async with asyncio.timeout(5):
                await anext(events)
        assert "revoked" in told.value.message


@pytest.mark.requirement("NODE-CLI")
def test_loom_watch_ends_with_an_error_when_its_token_is_revoked(node: Running) -> None:
    grants = ("--subscribe", ">", "--json")
    (made,) = node.lines("token", "create", "short", *grants)
    node.lines("emit", "kept.one", "1", "--ack", "disk", "--json")
    words = ("watch", "kept.>", "--from", "beginning")
    with subprocess.Popen(
        [sys.executable, "-m", "loom", *words],
        env={**node.variables, "LOOM_TOKEN": made["token"]},
        cwd=node.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert "kept.one" in watching.stdout.readline()
        node.run("token", "revoke", made["id"])
        told = watching.communicate(timeout=30)[1]
    assert watching.returncode == 5
    assert "loom: UNAUTHENTICATED: the credential of this session was revoked" in told


@pytest.mark.requirement("BRIDGE-CREDENTIAL")
async def test_a_token_allows_what_it_grants_and_no_more(node: Running) -> None:
    words = ("--publish", "order.>", "--call", "shop.*", "--json")
    (made,) = node.lines("token", "create", "web", *words)
    async with loom.connect(node.url, token=made["token"]) as ctx:
        await ctx.emit("order.placed", 1)
        with pytest.raises(Denied):
            await ctx.emit("bank.robbed", 1)
        with pytest.raises(Denied):
            async with ctx.watch("order.>"):
                pass
        with pytest.raises(LoomError) as hidden:
            await ctx.tool("loom.node.drain")
        assert hidden.value.code == "NOT_FOUND"


@pytest.mark.requirement("AUTHZ-SPAWN")
async def test_only_who_may_hear_what_spawns_an_agent_can_be_it(node: Running) -> None:
    def billing(group: str | None = None) -> loom.App:
        made = loom.App("shop")

        @made.agent("billing", topics=["order.>"], group=group)
        class Billing(loom.Agent[dict[str, int]]):
            async def on_event(self, ctx: loom.Context[dict[str, int]], event: object) -> int:
                ctx.state["n"] = ctx.state.get("n", 0) + 1
                return ctx.state["n"]

        return made

    def token(*filters: str) -> str:
        given = (word for one in filters for word in ("--subscribe", one))
        (made,) = node.lines("token", "create", "web", "--publish", "order.>", *given, "--json")
        return made["token"]

    without = token("order.>", "spawn.other")
    async with billing().running(url=node.url, token=token("order.>", "spawn.billing")) as ctx:
        assert (await ctx.request("order.new", key="ada", wait=True)).data == 1
        for group in (None, "other"):
            with pytest.raises(Denied) as refused:
                async with billing(group).running(url=node.url, token=without):
                    pass
            assert "spawn.billing" in refused.value.message
        assert (await ctx.request("order.new", key="ada", wait=True)).data == 2
    with pytest.raises(Denied, match='"loom" is the engine\'s own'):
        async with loom.connect(node.url, token=without, name="loom"):
            pass


@pytest.mark.requirement("BRIDGE-LINK-STATE")
async def test_where_no_node_is_an_app_says_so_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        async with loom.connect("loom://127.0.0.1:1", token="loom_" + "x" * 43):
            pass
    assert "loom up" in str(refused.value.hint)
    assert time.monotonic() - began < 3 * CONNECT_SECONDS


@pytest.mark.requirement("BRIDGE-RESTART")
async def test_an_app_goes_on_when_its_node_comes_back(tmp_path: Path) -> None:
    node = Running(tmp_path, "--data", "data", "--bind", "127.0.0.1:0")
    bind = node.url.removeprefix("loom://")
    app = hello()
    try:
        async with (
            app.running(url=node.url, token=node.token),
            loom.connect(node.url, token=node.token) as ctx,
            ctx.watch("loom.link.*") as events,
        ):
            node.stop(signal.SIGKILL)
            assert (await anext(events)).topic == "loom.link.lost"
            node = await asyncio.to_thread(Running, tmp_path, "--data", "data", "--bind", bind)
            back = await anext(events)
            assert (back.topic, back.data["resumed"]) == ("loom.link.up", False)
            answer = await ctx.request("greet.once", "again", wait=True, timeout=20)
            assert answer.data == "Hello, again"
            assert app.stats()["link"]["state"] == "up"
    finally:
        node.stop(signal.SIGKILL)


@pytest.mark.requirement("NODE-FOUND")
def test_what_a_killed_node_left_behind_is_not_believed_and_the_next_one_replaces_it(
    tmp_path: Path,
) -> None:
    node = Running(tmp_path, "--bind", "127.0.0.1:0")
    node.stop(signal.SIGKILL)
    assert list(tmp_path.rglob("node.json"))
    refused = node.run("list", "agents", "--url", "local")
    assert refused.returncode == 4
    assert "no node runs for this user" in refused.stderr
    node = Running(tmp_path, "--bind", "127.0.0.1:0")
    try:
        assert node.run("list", "agents", "--url", "local").returncode == 0
    finally:
        node.stop(signal.SIGKILL)


@pytest.mark.requirement("NODE-CLI")
def test_a_person_publishes_calls_and_looks_at_a_node(node: Running) -> None:
    done = node.run("run", "hello.py", "--url", "local", "-q", "--", "Ada")
    assert (done.stdout, done.returncode) == ("Hello, Ada\n", 0), done.stderr
    (receipt,) = node.lines("emit", "order.placed", '{"item": "tea"}', "--ack", "disk", "--json")
    assert receipt["level"] == "disk"
    (seen,) = node.lines("watch", "order.>", "--from", "beginning", "--count", "1", "--json")
    assert seen["data"] == {"item": "tea"}
    told = node.lines("call", "loom.node.list", '{"kind": "agents"}')
    assert isinstance(told[0], list)
    logged = node.lines("logs", "--url", "local", "--topic", "order.*", "--json")
    assert seen["id"] in {line["id"] for line in logged}
    assert node.lines("logs", "--data", "data", "--topic", "order.*", "--json") == logged
    runs = node.lines("runs", "--url", "local", "--json")
    assert runs == node.lines("runs", "--data", "data", "--json")
    shown = node.lines("runs", "show", runs[0]["run"], "--url", "local", "--json")
    assert shown == node.lines("runs", "show", runs[0]["run"], "--data", "data", "--json")
    for words in (("replay", runs[0]["run"]), ("replay", "--from", "0", "--until", "40")):
        happened = node.lines(*words, "--url", "local", "--json")
        assert happened == node.lines(*words, "--data", "data", "--json")
        assert happened
    again = node.run("replay", runs[0]["run"], "--url", "local", "--agents", "--app", "hello.py")
    assert "--data" in again.stderr
    for limit in ("2", "0"):
        words = ("logs", "--json", "--limit", limit)
        told, beside = node.run(*words, "--url", "local"), node.run(*words, "--data", "data")
        assert (told.stdout, told.stderr) == (beside.stdout, beside.stderr)
    why = node.lines("why", seen["id"], "--url", "local", "--json")
    assert why == node.lines("why", seen["id"], "--data", "data", "--json")
    for words in (("dlq", "list"), ("effects", "list"), ("list", "capabilities"), ("sessions",)):
        node.lines(*words, "--url", "local", "--json")
    assert node.lines("stats", "--json")[0]["urls"] == node.told["urls"]
    (copied,) = node.lines("backup", "monday", "--url", "local", "--json")
    assert Path(copied["path"]) == node.home / "data.backups" / "monday"


@pytest.mark.requirement("NODE-CLI")
async def test_loom_call_waits_as_long_as_the_capability_declares(node: Running) -> None:
    app = loom.App("slow")

    @app.capability("slow.pure", effect="pure", timeout=0.3)
    async def slow() -> None:
        await asyncio.Event().wait()

    async with app.running(url=node.url, token=node.token):
        async with asyncio.timeout(20):  # who knows nothing of it would wait 30 seconds
            done = await asyncio.to_thread(node.run, "call", "slow.pure")
    assert done.returncode == 7, done.stderr


@pytest.mark.requirement("NODE-CLI")
def test_lines_of_the_log_of_a_node_are_followed(node: Running) -> None:
    words = ("logs", "--follow", "--url", "local", "--topic", "followed.*", "--json")
    following = subprocess.Popen(
        [sys.executable, "-m", "loom", *words],
        env=node.variables,
        cwd=node.home,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        for number in range(3):
            node.lines("emit", f"followed.{number}", "--json")
            assert json.loads(following.stdout.readline())["topic"] == f"followed.{number}"
    finally:
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=20)
    assert following.returncode == 128 + signal.SIGINT


@pytest.mark.requirement("NODE-CLI")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("emit", "order..x"), 2),
        (("emit", "a.b", "{no json"), 2),
        (("call", "no.such", "{}"), 4),
        (("call", "loom.node.list", "[]"), 2),
        (("watch", "a..b"), 2),
        (("emit", "a.b", "--url", "http://x"), 2),
        (("emit", "a.b", "--url", "loom://127.0.0.1:1"), 5),
        (("token", "revoke", "00000000"), 4),
        (("token", "create", "x"), 2),
        (("token", "create", "x", "--all", "--expires", "soon"), 2),
        (("logs", "--url", "local", "--data", "x"), 2),
    ],
)
def test_a_command_that_fails_says_why_by_its_exit_code(
    node: Running, words: tuple[str, ...], code: int
) -> None:
    done = node.run(*words)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("loom: ")
    assert "Traceback" not in done.stderr


@pytest.mark.requirement("NODE-CLI")
def test_tokens_of_a_node_that_does_not_run_are_changed_in_its_directory(tmp_path: Path) -> None:
    running = Running(tmp_path, "--data", "data", "--bind", "127.0.0.1:0")
    assert running.stop() == 128 + signal.SIGTERM
    (made,) = running.lines("token", "create", "x", "--all", "--data", "data", "--json")
    listed = running.lines("token", "list", "--data", "data", "--json")
    assert [one["name"] for one in listed] == ["admin", "x"]
    running.lines("token", "revoke", made["id"], "--data", "data", "--json")
    assert len(running.lines("token", "list", "--data", "data", "--json")) == 1


@pytest.mark.requirement("NODE-CLI")
def test_commands_about_tokens_say_of_which_node_and_refuse_where_none_has_been(
    tmp_path: Path,
) -> None:
    running = Running(tmp_path, "--data", "data", "--bind", "127.0.0.1:0")
    made = running.run("token", "create", "x", "--all")
    assert f"good at the node at {running.url}\n" in made.stderr
    running.stop()
    for words in (("create", "x", "--all"), ("list",), ("revoke", "00000000")):
        refused = running.run("token", *words)  # it wrote into a directory that no node looks at
        assert refused.returncode == 4
        assert f"no node has been in {tmp_path / 'state'}" in refused.stderr
        assert "--data DIR" in refused.stderr
        assert "--url" in refused.stderr
    (tmp_path / "empty").mkdir()
    refused = running.run("token", "create", "x", "--all", "--data", "empty")
    assert refused.returncode == 4
    assert "no node has been in empty" in refused.stderr
    assert list((tmp_path / "empty").iterdir()) == []
    made = running.run("token", "create", "y", "--all", "--data", "data")
    assert made.stdout.startswith("loom_")
    assert "good at the node of data\n" in made.stderr
    assert "those of the node of data\n" in running.run("token", "list", "--data", "data").stderr


@pytest.mark.requirement("NODE-CLI")
def test_without_a_directory_tokens_are_those_of_the_node_without_one(tmp_path: Path) -> None:
    running = Running(tmp_path, "--bind", "127.0.0.1:0")
    running.stop()
    made = running.run("token", "create", "x", "--all")
    assert made.returncode == 0
    assert f"good at the node of {tmp_path / 'state'}, which is that of `loom up`" in made.stderr
    assert "none runs now" in made.stderr
