import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import asyncio, os
import loom

app = loom.App("spread")


@app.capability("whose", effect="pure")
async def whose() -> int:
    return os.getpid()


@app.capability("die", effect="unsafe")
async def die() -> None:
    os._exit(7)


@app.agent("sorter", topics=["number.>"])
async def sorter(ctx: loom.Context, event: loom.Event[dict]) -> None:
    await ctx.emit("seen.by", {"n": event.data["n"], "key": event.data["key"], "pid": os.getpid()})


async def spread(ctx: loom.Context, n: int, keys: int) -> list[dict]:
    seen = []
    async with ctx.watch("seen.by") as events:
        for one in range(n):
            key = f"k{one % keys}"
            await ctx.emit("number.next", {"n": one, "key": key}, key=key)
        async for event in events:
            seen.append(event.data)
            if len(seen) == n:
                return seen


async def main(ctx: loom.Context, args: list[str]) -> str:
    seen = await spread(ctx, 200, 20)
    for key in {one["key"] for one in seen}:
        of_key = [one["n"] for one in seen if one["key"] == key]
        assert of_key == sorted(of_key), (key, of_key)
    pids = {one["pid"] for one in seen}
    calls = set(await asyncio.gather(*(ctx.tool("whose") for _ in range(40))))
    if args == ["die"]:
        try:
            await ctx.tool("die", timeout=60)
        except loom.LoomError as error:
            print(error.code)
        seen = await spread(ctx, 50, 50)
        pids = {one["pid"] for one in seen}
    return f"{len(pids)} {len(calls)}"
"""


def run(folder: Path, *arguments: str, text: str = APP) -> "subprocess.CompletedProcess[str]":
    (folder / "app.py").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "loom", "run", "app.py", "-q", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.requirement("WORKERS-SHARE")
@pytest.mark.timeout(120)
def test_workers_share_events_and_calls_and_keep_the_order_of_each_key(tmp_path: Path) -> None:
    done = run(tmp_path, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]


@pytest.mark.requirement("WORKERS-DIE")
@pytest.mark.timeout(120)
def test_when_a_worker_dies_its_call_is_indeterminate_and_the_others_go_on(tmp_path: Path) -> None:
    done = run(tmp_path, "--workers", "2", "--", "die")
    assert done.returncode == 0, done.stderr
    code, agents, _ = done.stdout.split()
    assert code == "INDETERMINATE"
    assert int(agents) >= 1
    assert "ended with code 7" in done.stderr


@pytest.mark.requirement("WORKERS-FAIL")
@pytest.mark.timeout(120)
def test_an_app_that_cannot_start_ends_the_command_with_what_went_wrong(tmp_path: Path) -> None:
    broken = "import os, sys, loom\napp = loom.App('x')\nif 'worker' in sys.argv[0]: os._exit(3)\n"
    done = run(tmp_path, "--workers", "1", text=broken)
    assert done.returncode == 6
    assert "has ended 5 times" in done.stderr


@pytest.mark.requirement("WORKERS-STOP")
@pytest.mark.timeout(120)
def test_ctrl_c_ends_all_workers(tmp_path: Path) -> None:
    endless = APP.split("async def main", maxsplit=1)[0]
    (tmp_path / "app.py").write_text(endless, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "loom", "run", "app.py", "--workers", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "runs:" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT
    process.stderr.close()
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []
