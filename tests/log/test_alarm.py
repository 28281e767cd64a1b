"""Under the real clock, with no other traffic: what becomes due of durable work is done in time."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.errors import LoomError
from loom.testing import Harness

_PATIENCE = 20.0  # seconds


def bells() -> int:
    """Return how many threads of this process ring for an engine."""
    tasks = Path("/proc/self/task").glob("*/comm")
    return sum(comm.read_text(encoding="utf-8").strip() == "loom-bell" for comm in tasks)


async def named(count: int) -> None:
    """Wait until there are so many: a thread gets its name only when it runs."""
    async with asyncio.timeout(_PATIENCE):
        while bells() < count:  # noqa: ASYNC110  no event tells of a name
            await asyncio.sleep(0)


@pytest.mark.requirement("DUR-ALARM")
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize(
    ("clock", "durable", "rings"),
    [
        ("system", True, 1),
        ("system", False, 0),
        ("virtual", True, 0),
    ],
)
async def test_an_engine_rings_while_it_runs_if_something_is_durable_and_the_clock_is_real(
    clock: Any, durable: bool, rings: int, tmp_path: Path
) -> None:
    app, before = loom.App("shop"), bells()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        pass

    async with Harness(app, clock=clock, data=tmp_path) as h:
        await h.ctx.emit("order.new", 1, ack="os" if durable else None)
        await h.idle()
        await named(before + rings)
        assert bells() == before + rings
    assert bells() == before


@pytest.mark.requirement("DUR-ALARM", "SDKLOG-REDELIVER")
@pytest.mark.parametrize("kept", [True, False])
async def test_a_handler_that_failed_is_given_its_event_again_though_nothing_else_happens(
    kept: bool, tmp_path: Path
) -> None:
    app, attempts, done = loom.App("shop"), list[int](), asyncio.Event()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        attempts.append(event.attempt)
        if event.attempt == 1:
            raise LoomError("not yet")
        done.set()

    data = tmp_path if kept else None
    async with Harness(app, clock="system", data=data, durable=["order.>"]) as h:
        await h.ctx.emit("order.new", 1)
        async with asyncio.timeout(_PATIENCE):
            await done.wait()
    assert attempts == [1, 2]


@pytest.mark.requirement("DUR-ALARM", "DUR-ACK")
async def test_acks_are_in_the_log_in_time_though_the_only_loop_stands_still(
    tmp_path: Path,
) -> None:
    app, attempts, ended = loom.App("shop"), list[int](), asyncio.Event()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        attempts.append(event.attempt)
        asyncio.get_running_loop().call_later(0, ended.set)

    async with Harness(app, clock="system", data=tmp_path) as h:

        def end() -> int:
            return h.stats()["log"]["partitions"][0]["end"]

        before = end()
        await h.ctx.emit("order.new", 1, ack="disk")
        await ended.wait()
        until = time.monotonic() + _PATIENCE
        # the event, that it was begun, that it is done: no task of the loop runs meanwhile
        while end() < before + 3 and time.monotonic() < until:
            pass
        assert end() >= before + 3
    assert attempts == [1]


_KILLED = """
import asyncio, os, sys
import loom

app, left = loom.App("shop"), set(range(20))

@app.agent("ears", topics=["order.>"])
async def ears(ctx, event):
    if event.data in left:
        left.remove(event.data)
    else:
        print("again", flush=True)

async def main():
    async with app.running(data=sys.argv[1]) as ctx:
        if len(sys.argv) == 2:
            await asyncio.gather(*(ctx.emit("order.new", n, ack="os") for n in range(20)))
            while left:
                await asyncio.sleep(0.01)
            await asyncio.sleep(1.5)
            os.kill(os.getpid(), 9)
        left.clear()
        await asyncio.sleep(1.5)

asyncio.run(main())
"""


@pytest.mark.requirement("DUR-ALARM", "DUR-ACK")
def test_what_was_done_long_before_a_kill_is_not_done_again(tmp_path: Path) -> None:
    script = tmp_path / "shop.py"
    script.write_text(_KILLED, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "data")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (first.returncode, first.stdout) == (-9, ""), first.stderr
    second = subprocess.run([*command, "on"], capture_output=True, text=True, timeout=60)
    assert (second.returncode, second.stdout) == (0, ""), second.stderr


@pytest.mark.timeout(120)  # a lease holds for 30 s
@pytest.mark.requirement("DUR-LEASE", "DUR-ALARM")
async def test_the_turns_of_a_loop_that_stands_still_for_longer_than_a_lease_are_given_again(
    tmp_path: Path,
) -> None:
    app, attempts, done = loom.App("shop"), list[int](), asyncio.Event()
    harness = list[Harness]()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        attempts.append(event.attempt)
        if event.attempt > 1:
            done.set()
            return
        until = time.monotonic() + 60
        while time.monotonic() < until:  # until the engine tells so, from a thread of its own
            [log] = harness[0].stats()["logs"]
            if any(consumer["lapsed"] for consumer in log["consumers"]):
                break
            time.sleep(0.2)  # noqa: ASYNC251  it is what is found

    async with Harness(app, clock="system", data=tmp_path) as h:
        harness.append(h)
        await h.ctx.emit("order.new", 1, ack="disk")
        async with asyncio.timeout(_PATIENCE):
            await done.wait()
    assert attempts == [1, 2]
