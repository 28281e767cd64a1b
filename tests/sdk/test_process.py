"""Processes: exit with work in flight, signals, forks, two loops in turn, uvloop, threads."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import loom

APP = """
import asyncio, os, signal, sys
import loom

app = loom.App("process")

@app.capability("hang", effect="pure", timeout=600)
async def hang() -> None:
    await asyncio.get_running_loop().create_future()

@app.capability("block", effect="pure", timeout=600)
def block() -> None:
    import threading
    threading.Event().wait()

@app.agent("worker", topics=["job"])
async def worker(ctx: loom.Context, event: loom.Event) -> None:
    await ctx.emit("started")
    await ctx.tool("hang")

@app.agent("echo", topics=["echo"])
async def echo(ctx: loom.Context, event: loom.Event) -> object:
    return event.data
"""


def run(body: str, *, code: int = 0) -> str:
    """Run a script that starts with APP; it must end by itself with this exit code."""
    done = subprocess.run(
        [sys.executable, "-c", APP + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(70)
@pytest.mark.requirement("EXIT-CLEAN")
@pytest.mark.parametrize("how", ["sys.exit(3)", "os._exit(3)", "raise SystemExit(3)"])
def test_an_exit_with_work_in_flight_has_its_own_exit_code(how: str) -> None:
    out = run(
        f"""
        async def main() -> None:
            manager = app.running()
            ctx = await manager.__aenter__()
            watching = ctx.watch(">")  # never left
            await watching.__aenter__()
            await ctx.emit("job")
            asyncio.create_task(ctx.tool("block"))
            await asyncio.sleep(0.05)
            print("leaving", flush=True)
            {how}

        asyncio.run(main())
        """,
        code=3,
    )
    assert "leaving" in out
    assert "panicked" not in out


@pytest.mark.timeout(70)
@pytest.mark.requirement("EXIT-CLEAN")
def test_an_engine_that_is_held_by_a_global_at_exit_does_no_harm() -> None:
    out = run(
        """
        from loom._engine import Engine

        engine = Engine()
        sessions = [engine.attach("default", f"s{n}") for n in range(3)]
        handle = sessions[0].subscribe([">"], 0)
        sessions[1].offer(sessions[1].root, None, "a", b"1", 1, None)
        print("leaving")
        """
    )
    assert out == "leaving\n"


@pytest.mark.timeout(70)
@pytest.mark.requirement("FORK-SAFE")
def test_a_forked_child_is_refused_and_can_make_an_engine_of_its_own() -> None:
    out = run(
        """
        async def main() -> None:
            async with app.running() as ctx:
                pid = os.fork()
                if pid == 0:
                    try:
                        await ctx.emit("echo", 1)
                    except loom.LoomError as error:
                        print("child", error.code, flush=True)
                    for look in (app.stats, app.effects.list):
                        try:
                            look()
                        except loom.LoomError as error:
                            print("child", error.code, flush=True)
                    os._exit(0)
                os.waitpid(pid, 0)
                answer = await ctx.request("echo", "parent goes on")
                print(answer.data, flush=True)

        asyncio.run(main())
        pid = os.fork()
        if pid == 0:
            async def child() -> None:
                async with app.running() as ctx:
                    print((await ctx.request("echo", "child runs")).data, flush=True)
            asyncio.run(child())
            os._exit(0)
        os.waitpid(pid, 0)
        """
    )
    assert out == "child FENCED\n" * 3 + "parent goes on\nchild runs\n"


def interrupt(body: str, *numbers: int) -> tuple[int, str]:
    """Run a script until it says ready, send it the signals, and return its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", APP + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line == "ready\n":
            break
    for number in numbers:
        process.send_signal(number)
        for line in process.stdout:
            lines.append(line)
            if line == "again\n":
                break
    rest, _ = process.communicate(timeout=60)
    return process.returncode, "".join(lines) + rest


@pytest.mark.timeout(70)
@pytest.mark.requirement("STOP-GRACEFUL")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_app_finish(number: int) -> None:
    code, out = interrupt(
        """
        @app.agent("slow", topics=["slow"])
        async def slow(ctx: loom.Context, event: loom.Event) -> None:
            print("ready", flush=True)
            await asyncio.sleep(0.2)
            print("finished", flush=True)

        @app.agent("starter", topics=["unused"])
        class Starter(loom.Agent):
            async def on_start(self, ctx: loom.Context) -> None:
                await ctx.emit("slow")
            async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...
            async def on_stop(self, ctx: loom.Context) -> None:
                print("stopped", flush=True)

        app.run()
        print("left", flush=True)
        """,
        number,
    )
    assert out == "ready\nfinished\nstopped\nleft\n"
    assert code == 0


@pytest.mark.timeout(70)
@pytest.mark.requirement("STOP-GRACEFUL")
def test_a_second_signal_ends_it_at_once() -> None:
    code, out = interrupt(
        """
        @app.agent("stubborn", topics=["stubborn"])
        async def stubborn(ctx: loom.Context, event: loom.Event) -> None:
            loop = asyncio.get_running_loop()
            loop.call_later(0.2, lambda: print("again", flush=True))
            print("ready", flush=True)
            await loop.create_future()

        @app.agent("starter", topics=["unused"])
        class Starter(loom.Agent):
            async def on_start(self, ctx: loom.Context) -> None:
                await ctx.emit("stubborn")
            async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

        app.run()
        """,
        signal.SIGINT,
        signal.SIGINT,
    )
    assert "again" in out
    assert code in (130, -signal.SIGINT, 1)


@pytest.mark.timeout(70)
@pytest.mark.requirement("LOOPS-IN-TURN")
@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_two_event_loops_in_turn_work_on_asyncio_and_uvloop(policy: str) -> None:
    out = run(
        f"""
        import {policy} as policy

        async def main(n: int) -> None:
            async with app.running() as ctx:
                answers = await ctx.gather(*(ctx.request("echo", n) for _ in range(100)))
                loop = type(asyncio.get_running_loop())
                print({{answer.data for answer in answers}}, loop.__module__)

        for n in (1, 2):
            if policy is asyncio:
                asyncio.run(main(n))
            else:
                with asyncio.Runner(loop_factory=policy.new_event_loop) as runner:
                    runner.run(main(n))
        """
    )
    assert [line.split()[0] for line in out.splitlines()] == ["{1}", "{2}"]
    assert policy in out


@pytest.mark.requirement("WAKE-LOOP", "NO-RUST-CALLS")
async def test_the_engine_starts_no_thread() -> None:
    tasks = Path("/proc/self/task")
    if sys.platform != "linux":
        pytest.skip("threads are counted in /proc, which this system does not have")

    def threads() -> set[str]:
        return {task.name for task in tasks.iterdir()}

    before = threads()
    app = loom.App("threads")

    @app.agent("echo", topics=["echo"])
    async def echo(ctx: loom.Context, event: loom.Event) -> object:
        return event.data

    async with app.running() as ctx:
        await ctx.request("echo", 1)
        assert len(threads() - before) == 1  # that of the watchdog; the engine has none


async def test_two_apps_on_one_loop_do_not_see_each_other() -> None:
    def made(n: int) -> loom.App:
        app = loom.App("same")

        @app.agent("echo", topics=["who"])
        async def who(ctx: loom.Context, event: loom.Event) -> int:
            return n

        return app

    apps = [made(0), made(1)]
    async with apps[0].running() as first, apps[1].running() as second:
        answers = await asyncio.gather(first.request("who"), second.request("who"))

    assert [answer.data for answer in answers] == [0, 1]


@pytest.mark.timeout(70)
@pytest.mark.requirement("BOUNDED")
@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
def test_running_an_app_often_leaves_no_descriptor_behind() -> None:
    out = run(
        """
        import gc

        async def main() -> None:
            counts = []
            for _ in range(20):
                async with app.running() as ctx:
                    await ctx.request("echo", 1)
                    await ctx.emit("nobody")
                gc.collect()
                counts.append(len(os.listdir("/proc/self/fd")))
            print(counts[-1] - counts[0])

        asyncio.run(main())
        """
    )
    assert out == "0\n"


@pytest.mark.requirement("EXIT-CLEAN")
async def test_an_app_that_has_stopped_keeps_no_descriptor_whoever_still_holds_it() -> None:
    def descriptors() -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # what the listing itself was read from
                found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        return found

    kept: list[loom.Context[Any]] = []
    before = descriptors()  # some of which may be closed meanwhile: earlier tests left them
    for _ in range(20):
        async with loom.App("brief").running() as ctx:
            kept.append(ctx)
    assert descriptors() - before == set()
