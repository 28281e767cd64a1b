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
from loom.errors import Denied, InvalidParams, LoomError, Unauthenticated, Unavailable
from loom.limits import CONNECT_SECONDS

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

    def __init__(self, home: Path, *words: str) -> None:
        self.home = home
        self.variables = {**_plain(), "LOOM_HOME": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loom", "up", "--json", *words],
            env=self.variables,
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
def test_a_node_ends_well_when_its_operator_says_so(tmp_path: Path) -> None:
    running = Running(tmp_path, "--bind", "127.0.0.1:0")
    done = running.run("drain")
    assert done.returncode == 0, done.stderr
    running.process.communicate(timeout=30)
    assert running.process.returncode == 0


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
    why = node.lines("why", seen["id"], "--url", "local", "--json")
    assert why == node.lines("why", seen["id"], "--data", "data", "--json")
    for words in (("dlq", "list"), ("effects", "list"), ("list", "capabilities"), ("sessions",)):
        node.lines(*words, "--url", "local", "--json")
    assert node.lines("stats")[0]["urls"] == node.told["urls"]
    (copied,) = node.lines("backup", "monday", "--url", "local", "--json")
    assert Path(copied["path"]) == node.home / "data.backups" / "monday"


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
