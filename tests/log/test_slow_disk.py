"""A disk that takes its time: who waits for it waits together, and nobody else does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.log.kill.harness import LONGEST, ROOT, STRACE, traced

# A line on stderr for what happened, in its order; the figures of the log at the end on stdout.
SCRIPT = """
import asyncio
import json
import sys

import loom

app = loom.App("shop")
heard = asyncio.Event()
count = 0


@app.agent("ears", topics=["bell.>"], qos="realtime")
async def ears(ctx: loom.Context, event: loom.Event) -> None:
    global count
    count += 1
    if count == 100:
        heard.set()


async def main(ctx, args):
    told = []
    await ctx.emit("order.new", 0, ack="disk")  # all files are there
    before = app.stats()["log"]["syncs"]

    async def publish(n):
        receipt = await ctx.emit("order.new", n, ack="disk")
        told.append(receipt.level)

    async with asyncio.TaskGroup() as group:
        for n in range(200):
            group.create_task(publish(n))
        await asyncio.sleep(0)
        for n in range(100):
            await ctx.emit("bell.rang", n, qos="realtime")
            await asyncio.sleep(0)
        await heard.wait()
        acked = len(told)
    syncs = app.stats()["log"]["syncs"] - before
    print(json.dumps({"first": acked, "levels": told, "syncs": syncs}))
"""


@pytest.mark.timeout(120)
@pytest.mark.requirement("CRASH-SLOW")
@pytest.mark.skipif(STRACE is None, reason="no strace that may trace; make test-deps brings it")
def test_a_slow_disk_holds_up_only_who_waits_for_it(tmp_path: Path) -> None:
    script = tmp_path / "shop.py"
    script.write_text(SCRIPT, encoding="utf-8")
    slow = traced(["fdatasync:delay_enter=1000000"])  # microseconds
    command = [*slow, sys.executable, "-m", "loom", "run", "-q", str(script), "--data", "data"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'python'}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["first"] == 0  # realtime events were handled before the first sync was through
    assert seen["levels"] == ["disk"] * 200
    assert seen["syncs"] <= 4  # not one for each
