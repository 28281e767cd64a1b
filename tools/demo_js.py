"""The trio with its Researcher in TypeScript, each agent in a process: ``make demo-js``.

A node and three processes that meet there. The researcher or the writer that dies is started again;
where that cost the question, it is asked again, and both is said. Nothing outlives this process.
"""

import asyncio
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import loom
from loom.address import read_token
from loom.cli.show import counted
from loom.codec import decode
from loom.errors import LoomError

ROOT = Path(__file__).resolve().parent.parent
RESEARCHER = "build/mixed/researcher.js"
OLDEST_NODE: Final = 20
LIVES: Final = 3  # of each process, and times that the question is asked
START_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 12.0  # for what has been told to end
LOOM = (sys.executable, "-m", "loom")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Part(NamedTuple):
    """One agent, and the process that it is in."""

    agent: str
    command: tuple[str, ...]
    told: str  # in which language it is, and what the process does


PARTS = (
    Part(
        "writer",
        # What `loom run --workers` starts: when it has died, the node does not wait for it to come
        # back, and gives its calls to the next one.
        (sys.executable, "-m", "loom.cli.worker", "{ready}", "examples.mixed.writer"),
        "Python: examples/mixed/writer.py, offers web.search and weather.get",
    ),
    Part(
        "researcher",
        ("node", RESEARCHER),
        "TypeScript: examples/mixed/researcher.ts, calls them",
    ),
)
PLANNER = Part(
    "planner",
    (*LOOM, "run", "examples.mixed.planner", "--"),
    "Python: examples/mixed/planner.py, asks",
)


class Failed(Exception):
    """The demonstration cannot go on."""


def say(who: str, what: str) -> None:
    """Print one line about a process."""
    print(f"{who:<10}  {what}", flush=True)


def how(code: int) -> str:
    """Say how a process has ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def check_tools() -> None:
    """Look for what the Researcher needs.

    Raises:
        Failed: something is missing, or too old.
    """
    way_out = f"install Node {OLDEST_NODE} or newer, which brings npm"
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        raise Failed(f"missing: {', '.join(missing)}; {way_out}")
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)\.", told)
    if version is None or int(version[1]) < OLDEST_NODE:
        raise Failed(f"node is {told.strip() or 'no Node'}; {way_out}")
    if not (ROOT / RESEARCHER).is_file():
        raise Failed(f"{RESEARCHER} is not built; `make demo-js` builds it")


class Demo:
    """The processes, and what became of them."""

    def __init__(self, question: list[str]) -> None:
        self.question = question
        self.environment = dict(os.environ)
        self.nowhere = os.open(os.devnull, os.O_WRONLY)  # nobody waits for a word that one is ready
        self.running: set[asyncio.subprocess.Process] = set()
        self.restarts = 0
        self.number: int | None = None  # of the signal that asked for an end

    async def run(self) -> int:
        """Run all of it; return the exit code.

        Raises:
            Failed: a process cannot be started, or dies again and again.
        """
        task = asyncio.current_task()
        assert task is not None
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.told, number, task)
        try:
            with tempfile.TemporaryDirectory(prefix="loom-demo-js-") as home:
                return await self.with_node(home)
        except (asyncio.CancelledError, Failed):
            if self.number is None:
                raise
            return 128 + self.number

    def told(self, number: int, task: asyncio.Task[Any]) -> None:
        """End in order at the first signal, at once at the second."""
        if self.number is None:
            self.number = number
            task.cancel()
        else:
            self.kill()

    def kill(self) -> None:
        """End all processes at once."""
        for process in self.running:
            with suppress(ProcessLookupError):
                process.kill()

    @asynccontextmanager
    async def process(
        self, command: tuple[str, ...], *, end: int, piped: bool = True, **more: str
    ) -> AsyncGenerator[asyncio.subprocess.Process]:
        """Start a process; when the block ends it is told to end, and does.

        It has a session of its own: Ctrl-C is for this process, which ends the others in order.
        """
        process = await asyncio.create_subprocess_exec(
            *(word.format(ready=self.nowhere) for word in command),
            cwd=ROOT,
            env={**self.environment, **more},
            stdin=subprocess.PIPE,  # its end is that of this process
            pass_fds=(self.nowhere,),
            stdout=subprocess.PIPE if piped else None,
            stderr=subprocess.STDOUT if piped else None,
            start_new_session=True,
        )
        self.running.add(process)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(end)
                try:
                    await asyncio.wait_for(process.wait(), GRACE_SECONDS)
                except TimeoutError:
                    process.kill()
                    await process.wait()
            self.running.discard(process)

    async def with_node(self, home: str) -> int:
        """Run a node, the two that stay, and the one that asks."""
        command = (*LOOM, "up", "--bind", "127.0.0.1:0", "--json")
        # A home of its own: it is not the node of this user.
        async with self.process(command, end=signal.SIGTERM, LOOM_HOME=home) as node:
            told = await where(node)
            url, token = told["urls"][0], read_token(Path(told["token_file"]))
            self.environment |= {"LOOM_URL": url, "LOOM_TOKEN": token}
            say("node", f"process {node.pid}  loom up at {url}")
            async with (
                loom.connect(url, token=token, name="demo") as ctx,
                staying(self.watch(node), *(self.keep(part) for part in PARTS)),
            ):
                return await self.answered(ctx)

    async def watch(self, node: asyncio.subprocess.Process) -> NoReturn:
        """Fail when the node is gone: all others are at it."""
        await shown("node", node)
        code = await node.wait()
        self.kill()  # they would wait for it
        raise Failed(f"the node was {how(code)}")

    async def keep(self, part: Part) -> NoReturn:
        """Keep a process running: one that dies is started again, so many times."""
        for life in range(LIVES):
            async with self.process(part.command, end=signal.SIGTERM) as process:
                say(part.agent, f"process {process.pid}  {part.told}")
                await shown(part.agent, process)
                code = await process.wait()
            if self.number is not None:
                break
            self.restarts += 1
            again = "; it is started again" if life + 1 < LIVES else ""
            say(part.agent, f"process {process.pid} was {how(code)}{again}")
        raise Failed(f"the process of the {part.agent} has died {LIVES} times")

    async def answered(self, ctx: loom.Context) -> int:
        """Let the Planner ask; again where its question was lost with a process."""
        for left in reversed(range(LIVES)):
            await joined(ctx, {part.agent for part in PARTS})
            restarts, begun = self.restarts, time.monotonic()
            command = (*PLANNER.command, *self.question)
            async with self.process(command, end=signal.SIGINT, piped=False) as planner:
                say(PLANNER.agent, f"process {planner.pid}  {PLANNER.told}")
                code = await planner.wait()
            if code == 0:
                await sum_up(ctx, time.monotonic() - begun)
                return 0
            if code < 0:
                raise Failed(f"the planner, which asks, was {how(code)}")
            if self.restarts == restarts or left == 0:
                return code
            say(PLANNER.agent, "the question was lost with that process: it is asked again")
        raise AssertionError


async def where(node: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return what the node says of itself when it is up.

    Raises:
        Failed: it ends before that.
    """
    assert node.stdout is not None
    said = b""
    async with asyncio.timeout(START_SECONDS):
        async for line in node.stdout:
            if line.startswith(b"{"):
                return decode(line)
            said += line
    raise Failed(f"the node was {how(await node.wait())}\n{said.decode(errors='replace')}")


async def shown(who: str, process: asyncio.subprocess.Process) -> None:
    """Print what a process says, with its name before each line, until it has ended."""
    assert process.stdout is not None
    async for line in process.stdout:
        say(who, f"| {line.decode(errors='replace').rstrip()}")


async def joined(ctx: loom.Context, names: set[str]) -> None:
    """Wait until all these agents are at the node.

    Raises:
        Failed: one does not come.
    """
    missing = names
    try:
        async with asyncio.timeout(START_SECONDS), ctx.watch("loom.directory.>") as changes:
            while missing := names - {agent.name for agent in await ctx.agents()}:
                await anext(changes)
    except TimeoutError:
        late = ", ".join(sorted(missing))
        raise Failed(f"after {START_SECONDS:.0f} s there is no {late}") from None


async def sum_up(ctx: loom.Context, seconds: float) -> None:
    """Say which calls went from TypeScript to Python, by the node's own figures."""
    stats = await ctx.tool("loom.node.stats", args={})
    calls = {
        one["name"]: one["calls"]
        for one in stats["capabilities"]
        if one["calls"] and not one["name"].startswith("loom.node.")
    }
    told = ", ".join(f"{name} {count}" for name, count in sorted(calls.items())) or "none"
    total = counted(sum(calls.values()), "call", "calls")
    print(f"\n{total} from TypeScript to Python ({told}); answered in {seconds:.2f} s", flush=True)


@asynccontextmanager
async def staying(*works: Coroutine[Any, Any, NoReturn]) -> AsyncGenerator[None]:
    """Run what goes on as long as the block; the first that fails ends it."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            yield
            for task in tasks:
                task.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def main(arguments: list[str]) -> int:
    """Run the demonstration; 0 when the question was answered."""
    logging.basicConfig(level=logging.ERROR)  # what becomes of the node is said here
    try:
        check_tools()
        return asyncio.run(Demo(arguments).run())
    except Failed as error:
        print(f"demo-js: {error}", file=sys.stderr)
    except LoomError as error:
        print(f"demo-js: {error.code}: {error.message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
