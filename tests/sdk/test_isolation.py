"""isolation="process": what it survives, how it ends, and that it leaves nothing."""

import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any, cast

import pytest

import loom
from loom.errors import CODES
from loom.limits import ERROR_DETAIL_BYTES
from loom.runtime.host import error_detail, error_number
from loom.testing import Harness
from tests.sdk import isolated, never_ready
from tests.sdk.isolated import Point

pytestmark = pytest.mark.timeout(60)


def workers_of(stats: dict[str, Any]) -> dict[str, int]:
    return stats["runtime"]["workers"]


def is_alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children() -> set[str]:
    """Return the children of this process, zombies too."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def written(told: Path) -> list[int]:
    """Return the ids that a process has written of itself and its child."""
    if not told.exists():
        return []
    return [int(pid) for pid in told.read_text(encoding="utf-8").split()]


async def read_pids(told: Path) -> list[int]:
    while not (pids := written(told)):  # noqa: ASYNC110  another process writes it
        await asyncio.sleep(0.002)
    return pids


async def gone(pids: list[int], within: float) -> float:
    """Wait until none of the processes is there; return the seconds it took."""
    begun = time.monotonic()
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() - begun < within, pids
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


@pytest.mark.requirement("ISOLATION-SURVIVES")
async def test_functions_run_in_processes_of_their_own_with_their_types() -> None:
    async with Harness(isolated.app) as h:
        assert await h.ctx.tool(isolated.add.bind(1, 2)) == 3
        assert await h.ctx.tool(isolated.move.bind(Point(x=1), 2)) == Point(x=3)
        assert await h.ctx.tool(isolated.raw.bind(3)) == b"\xff\xff\xff"
        one, other = [await h.ctx.tool(isolated.pid.bind()) for _ in range(2)]
        assert one == other != os.getpid()
        assert await h.ctx.tool(isolated.charge.bind(cents=5)) is not None
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool("add", args={"a": 1, "b": "many"})
        assert workers_of(h.stats())["busy"] == 0

    assert isolated.add(1, 2) == 3
    assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", "args.b")


@pytest.mark.requirement("ISOLATION-SURVIVES")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "ended with exit code 3"),
        ("segfault", "was ended by SIGSEGV"),
        ("kill", "was ended by SIGKILL"),
        ("abort", "was ended by SIGABRT"),
        ("close", "was ended by"),
    ],
)
async def test_a_process_that_dies_ends_its_call_and_is_replaced(
    how: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Harness(isolated.app, clock="system") as h:
        with pytest.raises(loom.LoomError) as pure:
            await h.ctx.tool(isolated.harm.bind(how))
        with pytest.raises(loom.LoomError) as unsafe:
            await h.ctx.tool(isolated.harm_unsafe.bind(how))
        assert await h.ctx.tool(isolated.harm.bind("nothing")) is None
        assert await h.ctx.tool(isolated.harm_unsafe.bind("nothing")) is None
        assert workers_of(h.stats())["died"] >= 2

    assert (pure.value.code, pure.value.retry) == ("PROVIDER_UNAVAILABLE", True)
    assert unsafe.value.code == "INDETERMINATE"
    if how != "close":
        assert said in pure.value.message
        assert said in unsafe.value.message
    warned = [r for r in caplog.records if (r.name, r.levelname) == ("loom.capability", "WARNING")]
    told = [r.getMessage() for r in warned]
    assert len(told) >= 2
    for name in ("harm", "harm.unsafe"):
        assert any(line.startswith(f"capability {name} lost a worker") for line in told)
    assert all(said in line for line in told)


@pytest.mark.requirement("ISOLATION-SURVIVES", "ERRORS-NO-STACK")
async def test_what_the_function_raises_is_told_and_its_process_serves_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Harness(isolated.app) as h:
        found: list[loom.LoomError] = []
        for how in ("system exit", "raise", "meant"):
            with pytest.raises(loom.LoomError) as caught:
                await h.ctx.tool(isolated.harm_unsafe.bind(how))
            found.append(caught.value)
        assert workers_of(h.stats())["started"] == 1

    assert [error.code for error in found] == ["CAPABILITY_ERROR", "CAPABILITY_ERROR", "TOOL_ERROR"]
    assert found[0].message == "harm.unsafe raised SystemExit"
    assert found[1].message == "harm.unsafe raised ValueError"
    assert (found[2].message, found[2].field) == ("the disk is full", "disk")
    assert (found[2].hint, found[2].retry) == ("delete something", True)
    logged = [str(r.exc_info[1]) for r in caplog.records if r.exc_info]
    assert any("hunter2" in text and "in do_harm" in text for text in logged)


@pytest.mark.requirement("ISOLATION-SURVIVES")
@pytest.mark.parametrize("how", ["os", "libc"])
async def test_a_function_that_forks_gives_each_caller_its_own_result(how: str) -> None:
    async with Harness(isolated.app, clock="system") as h:
        calls = [h.ctx.tool(isolated.fork.bind(number, how)) for number in range(30)]
        assert await asyncio.gather(*calls) == list(range(30))
        assert workers_of(h.stats())["died"] == 0
        assert workers_of(h.stats())["killed"] == 0


@pytest.mark.requirement("ISOLATION-SURVIVES")
async def test_a_module_that_forks_at_its_import_gives_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOM_TEST_PARENT", str(os.getpid()))
    monkeypatch.setenv("LOOM_TEST_IMPORT", "forks")
    async with Harness(never_ready.app, clock="system") as h:
        assert [await h.ctx.tool(never_ready.never.bind()) for _ in range(3)] == [None] * 3
        assert workers_of(h.stats())["started"] == 1
        assert workers_of(h.stats())["killed"] == 0


@pytest.mark.requirement("ISOLATION-SURVIVES")
@pytest.mark.parametrize("ahead", [-1, 1])
async def test_an_answer_to_another_call_ends_the_process_and_is_nobodys(ahead: int) -> None:
    async with Harness(isolated.app, clock="system") as h:
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool(isolated.forge.bind(ahead))
        assert await h.ctx.tool(isolated.forge.bind(0)) == -1  # that one would be believed
        assert await h.ctx.tool(isolated.add.bind(1, 2)) == 3
        assert workers_of(h.stats())["killed"] >= 1

    assert caught.value.code == "INDETERMINATE"
    assert "sent what answers no open call" in caught.value.message


@pytest.mark.requirement("ISOLATION-SURVIVES", "BOUNDED")
async def test_an_error_of_any_length_arrives_and_its_process_serves_on() -> None:
    async with Harness(isolated.app) as h:
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool(isolated.harm_unsafe.bind("long"))
        with pytest.raises(loom.LoomError) as named:
            await h.ctx.tool(isolated.harm_unsafe.bind("long name"))
        assert workers_of(h.stats())["started"] == 1

    error = caught.value
    assert error.code == "TOOL_ERROR"
    assert error.message.startswith("\x00" * 100)
    assert (error.hint or "").startswith("h" * 1_000)
    assert (error.field or "").startswith("\U0001f600" * 100)
    assert named.value.code == "CAPABILITY_ERROR"
    assert "X" * 200 in named.value.message


@pytest.mark.requirement("BOUNDED", "ERRORS-CLOSED")
@pytest.mark.parametrize("text", ["h", "\x00", "\U0001f600", "\ud800", '"', "\\"])
def test_what_is_told_of_an_error_is_bounded_whatever_stands_in_it(text: str) -> None:
    long = text * 100_000
    error = loom.LoomError(
        long, code=long, field=long, limit=long, hint=long, who=long, retry=True, retry_after=9e12
    )
    detail = error_detail(error)
    told = json.loads(detail)
    assert len(detail) <= ERROR_DETAIL_BYTES
    assert set(told) >= {"message", "field", "limit", "hint", "who", "retry", "retry_after_ms"}
    assert len(detail) > ERROR_DETAIL_BYTES // 2  # and not cut to nothing
    assert error_number(error) == CODES["INTERNAL"]

    odd: Any = loom.LoomError("m", field=cast("Any", object()), retry_after=float("inf"))
    assert set(json.loads(error_detail(odd))) == {"message", "field"}


@pytest.mark.requirement("ISOLATION-SURVIVES", "BOUNDED")
async def test_results_are_bounded_and_floods_of_output_harm_nobody(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with Harness(isolated.app) as h:
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool(isolated.raw.bind(1_048_577))
        assert len(await h.ctx.tool(isolated.raw.bind(1_048_576))) == 1_048_576
        assert await h.ctx.tool(isolated.flood.bind(10_000)) == 10_000
        assert workers_of(h.stats())["died"] == 0

    assert (caught.value.code, caught.value.limit) == ("INVALID_PARAMS", "payload_bytes")
    assert capfd.readouterr().out.count("\n") == 10_000


@pytest.mark.requirement("ISOLATION-CANCEL")
@pytest.mark.parametrize("how", ["sleep", "holds the interpreter", "regex", "deaf", "child"])
async def test_a_call_that_is_given_up_ends_its_process_within_a_second(
    how: str, tmp_path: Path
) -> None:
    async with Harness(isolated.app, clock="system") as h:
        called = asyncio.create_task(h.ctx.tool(isolated.stay.bind(how, str(tmp_path / "told"))))
        pids = await read_pids(tmp_path / "told")
        assert len(pids) == (2 if how == "child" else 1)
        assert (await h.ctx.tool(isolated.add.bind(1, 2))) == 3  # the loop is free
        called.cancel()
        with pytest.raises(asyncio.CancelledError):
            await called
        await gone(pids, within=1.0)
        await h.idle()
        assert workers_of(h.stats())["busy"] == 0
        assert h.stats()["calls"]["pending"] == 0


@pytest.mark.requirement("ISOLATION-CANCEL")
async def test_a_process_that_ends_takes_its_children_with_it(tmp_path: Path) -> None:
    async with Harness(isolated.app, clock="system") as h:
        with pytest.raises(loom.LoomError):
            await h.ctx.tool(isolated.stay.bind("orphan", str(tmp_path / "told")))
        await gone(written(tmp_path / "told"), within=1.0)


@pytest.mark.requirement("ISOLATION-CANCEL")
async def test_a_deadline_ends_the_process(tmp_path: Path) -> None:
    async with Harness(isolated.app, clock="system") as h:
        await h.ctx.tool(isolated.add.bind(1, 2))
        bound = isolated.stay.bind("sleep", str(tmp_path / "told"))
        called = asyncio.create_task(h.ctx.tool(bound, timeout=3))
        pids = await read_pids(tmp_path / "told")
        with pytest.raises(TimeoutError):
            await called
        await gone(pids, within=1.0)


@pytest.mark.requirement("ISOLATION-CANCEL")
async def test_the_stop_of_the_app_ends_its_processes(tmp_path: Path) -> None:
    async with isolated.app.running() as ctx:
        called = asyncio.create_task(ctx.tool(isolated.stay.bind("deaf", str(tmp_path / "told"))))
        idle = await ctx.tool(isolated.pid.bind())
        pids = [*await read_pids(tmp_path / "told"), idle]
        called.cancel()
        begun = time.monotonic()
    took = time.monotonic() - begun
    with contextlib.suppress(asyncio.CancelledError, loom.LoomError):
        await called
    assert not any(is_alive(pid) for pid in pids)
    assert took < 3


@pytest.mark.requirement("ISOLATION-CANCEL")
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
async def test_fifty_calls_cancelled_at_random_points_leave_nothing(tmp_path: Path) -> None:
    chance = random.Random(50)
    tasks, before = asyncio.all_tasks(), children()
    async with Harness(isolated.app, clock="system") as h:
        fds = descriptors()
        for number in range(50):
            how = chance.choice(["sleep", "holds the interpreter", "regex", "exit", "add"])
            if how == "add":
                call: Any = h.ctx.tool(isolated.add.bind(1, 2))
            elif how == "exit":
                call = h.ctx.tool(isolated.harm_unsafe.bind("exit"))
            else:
                call = h.ctx.tool(isolated.stay.bind(how, str(tmp_path / str(number))))
            called = asyncio.create_task(call)
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01, 0.1, 0.3]))
            called.cancel()
            with contextlib.suppress(asyncio.CancelledError, loom.LoomError):
                await called
        assert await h.ctx.tool(isolated.add.bind(1, 2)) == 3
        assert h.stats()["calls"]["pending"] == 0
    assert children() == before
    assert asyncio.all_tasks() == tasks
    assert descriptors() <= fds


@pytest.mark.requirement("ISOLATION-CANCEL")
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death on Linux")
@pytest.mark.parametrize("how", ["sleep", "holds the interpreter", "child"])
async def test_processes_end_when_their_parent_is_killed(how: str, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import asyncio
        from tests.sdk import isolated

        async def main() -> None:
            async with isolated.app.running() as ctx:
                await ctx.tool(isolated.stay.bind({how!r}, {str(tmp_path / "told")!r}))

        asyncio.run(main())
    """)
    parent = subprocess.Popen(  # noqa: ASYNC220  this loop has nothing else to do
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2]
    )
    pids = await read_pids(tmp_path / "told")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    await gone(pids, within=5.0)


@pytest.mark.requirement("ISOLATION-SURVIVES")
async def test_a_process_that_cannot_start_is_told_and_nothing_has_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOM_TEST_PARENT", str(os.getpid()))
    async with Harness(never_ready.app, clock="system") as h:
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool(never_ready.never.bind())
        monkeypatch.delenv("LOOM_TEST_PARENT")
        assert await h.ctx.tool(never_ready.never.bind()) is None

    assert caught.value.code == "PROVIDER_UNAVAILABLE"
    assert "could not be started: RuntimeError" in caught.value.message


@pytest.mark.requirement("ISOLATION-SURVIVES")
async def test_a_process_that_is_never_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.runtime.isolation.WORKER_START_SECONDS", 0.2)
    monkeypatch.setattr("loom.runtime.isolation._BOOT", "import time; time.sleep(600)")
    before = children()
    async with Harness(isolated.app, clock="system") as h:
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.tool(isolated.harm_unsafe.bind("nothing"))
    assert caught.value.code == "PROVIDER_UNAVAILABLE"
    assert "not ready within" in caught.value.message
    assert children() == before


@pytest.mark.requirement("ISOLATION-SURVIVES")
async def test_a_process_without_a_call_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.runtime.isolation.WORKER_IDLE_SECONDS", 0.05)
    async with Harness(isolated.app, clock="system") as h:
        pid = await h.ctx.tool(isolated.pid.bind())
        await gone([pid], within=2.0)
        assert await h.ctx.tool(isolated.pid.bind()) != pid


@pytest.mark.requirement("ISOLATION-REFUSED")
def test_what_no_other_process_could_run_is_refused_where_it_is_written() -> None:
    app: Any = loom.App("refused")
    found: list[loom.LoomError] = []

    @contextlib.contextmanager
    def refused() -> Generator[None]:
        with pytest.raises(loom.LoomError) as caught:
            yield
        found.append(caught.value)

    with refused():

        @loom.capability("method", isolation="process")
        async def method(self: Any) -> None: ...

    with refused():

        @app.capability("generator", isolation="process")
        async def generator() -> AsyncIterator[int]:
            yield 1

    with refused():

        @app.capability("inner", isolation="process")
        def inner() -> None: ...

    with refused():
        app.capability("nameless", isolation="process")(lambda: None)

    assert {(error.code, error.field) for error in found} == {("INVALID_PARAMS", "isolation")}
    whys = ["is a method", "is a generator", "top level", "top level"]
    assert all(why in error.message for why, error in zip(whys, found, strict=True))


def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.requirement("ISOLATION-REFUSED")
async def test_a_function_that_its_module_knows_as_another_is_refused_at_the_start() -> None:
    app = loom.App("hidden")
    hidden: dict[str, Any] = {"__name__": __name__}
    exec("def add(a: int) -> int: return a", hidden)
    app.capability("add", isolation="process")(hidden["add"])
    with pytest.raises(loom.LoomError) as caught:
        async with app.running():
            pytest.fail("it runs")
    assert (caught.value.code, caught.value.field) == ("INVALID_PARAMS", "isolation")


@pytest.mark.requirement("ISOLATION-SURVIVES")
@pytest.mark.parametrize(
    ("way", "loop"),
    [("script", "asyncio"), ("script", "uvloop"), ("module", "asyncio"), ("loom run", "asyncio")],
)
def test_a_program_of_one_file_can_have_processes(way: str, loop: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent(f"""
            import asyncio, os, {loop} as policy
            import loom

            app = loom.App("program")

            @app.capability("twice", effect="pure", isolation="process")
            def twice(n: int) -> list[int]:
                return [2 * n, os.getpid()]

            async def main(ctx: loom.Context, args: list[str]) -> None:
                double, pid = await ctx.tool(twice.bind(21))
                print(double, pid != os.getpid(), flush=True)

            async def run() -> None:
                async with app.running() as ctx:
                    await main(ctx, [])

            if __name__ == "__main__":
                with asyncio.Runner(loop_factory=policy.new_event_loop) as runner:
                    runner.run(run())
        """),
        encoding="utf-8",
    )
    command = {
        "script": ["program.py"],
        "module": ["-m", "program"],
        "loom run": ["-m", "loom", "run", "--quiet", "program.py"],
    }[way]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "42 True\n"), done.stderr
