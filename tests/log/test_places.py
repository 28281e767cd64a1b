"""Where a log may be, and what is said where it may not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.errors import Conflict, InvalidParams, LoomError
from loom.testing import Harness


def shop() -> loom.App:
    app = loom.App("shop")

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        """Hear it."""

    del ears
    return app


def damage(path: Path) -> Path:
    """Flip a bit in what was synced, and take away what would stand in for it."""
    (segment, *_) = sorted(path.glob("default/log/*.seg"))
    written = bytearray(segment.read_bytes())
    written[written.index(b'"n":3')] ^= 1
    segment.write_bytes(written)
    for snapshot in path.glob("default/snapshots/*"):
        snapshot.unlink()
    return segment


def run(script: Path, data: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "loom", "run", str(script), "--quiet", "--data", str(data)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


async def filled(path: Path) -> None:
    async with Harness(shop(), data=path) as h:
        for n in range(20):
            await h.ctx.emit("order.new", {"n": n}, ack="disk")
        await h.idle()


@pytest.mark.requirement("SDKLOG-PLACES")
async def test_two_engines_do_not_share_a_directory(tmp_path: Path) -> None:
    async with shop().running(data=tmp_path) as ctx:
        with pytest.raises(Conflict) as refused:
            async with shop().running(data=tmp_path):
                raise AssertionError
        assert str(os.getpid()) in refused.value.message
        assert (await ctx.emit("order.new", 1, ack="disk")).level == "disk"
    await filled(tmp_path)


@pytest.mark.requirement("SDKLOG-PLACES")
async def test_a_file_and_a_foreign_folder_are_no_log_and_are_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine", encoding="utf-8")
    for place in (file, folder):
        with pytest.raises(LoomError) as refused:
            async with shop().running(data=place):
                raise AssertionError
        assert refused.value.field == "data"
        assert str(place) in refused.value.message
    assert file.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.requirement("SDKLOG-PLACES")
async def test_a_path_that_no_file_can_have_is_a_wrong_argument(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for place, why in ((tmp_path / ("a" * 300), "too long"), (circle / "data", "circle")):
        with pytest.raises(InvalidParams, match=why) as refused:
            async with shop().running(data=place):
                raise AssertionError
        assert refused.value.field == "data"
        with pytest.raises(InvalidParams, match=why):
            loom.open_log(place)


@pytest.mark.requirement("SDKLOG-PLACES")
async def test_a_log_that_is_damaged_says_where_and_goes_on_only_when_told_to(
    tmp_path: Path,
) -> None:
    await filled(tmp_path)
    segment = damage(tmp_path)
    with pytest.raises(LoomError) as refused:
        async with Harness(shop(), data=tmp_path):
            raise AssertionError
    assert segment.name in refused.value.message
    assert "--accept-loss" in str(refused.value.hint)
    script = tmp_path.parent / "app.py"
    script.write_text(SCRIPT, encoding="utf-8")
    blocked = run(script, tmp_path)
    assert blocked.returncode == 1
    assert segment.name in blocked.stderr
    told = run(script, tmp_path, "--accept-loss")
    assert (told.returncode, told.stdout) == (0, "done\n"), told.stderr
    async with Harness(shop(), data=tmp_path) as h:
        assert (await h.ctx.emit("order.new", 1, ack="disk")).level == "disk"


SCRIPT = """
import loom

app = loom.App("shop")


async def main(ctx: loom.Context, args: list[str]) -> str:
    await ctx.emit("order.new", 1, ack="disk")
    return "done"
"""


@pytest.mark.requirement("SDKLOG-PLACES")
def test_a_full_disk_refuses_before_the_ack_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount")
    try:
        script = tmp_path / "full.py"
        script.write_text(FULL, encoding="utf-8")
        ended = subprocess.run(
            [sys.executable, str(script), str(disk)], capture_output=True, text=True, check=False
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert (ended.returncode, ended.stdout.split()) == (0, ["EXHAUSTED", "disk", "whole"]), ended


FULL = """
import asyncio, os, sys
import loom

app = loom.App("shop")
acked, heard = [], []


@app.agent("ears", topics=["order.>"], start="beginning")
async def ears(ctx, event):
    heard.append(event.data["n"])


async def main(disk):
    ballast = os.path.join(disk, "ballast")
    async with app.running(data=os.path.join(disk, "log")) as ctx:
        async def one(n):
            await ctx.emit("order.new", {"n": n, "pad": os.urandom(200_000).hex()}, ack="disk")
            acked.append(n)

        await one(0)
        free = os.statvfs(disk)
        with open(ballast, "wb") as file:
            file.write(bytes(max(0, free.f_bavail * free.f_frsize - 4096)))
        for n in range(1, 400):
            try:
                await one(n)
            except loom.LoomError as error:
                print(error.code)
                break
        os.unlink(ballast)
        for n in range(1000, 1100):
            try:
                print((await ctx.emit("order.new", {"n": n}, ack="disk")).level)
            except loom.LoomError:
                await asyncio.sleep(0.05)
                continue
            acked.append(n)
            break
    heard.clear()
    async with app.running(data=os.path.join(disk, "log")) as ctx:
        seen = []
        async with ctx.watch("order.>", start="beginning") as events:
            async for event in events:
                seen.append(event.data["n"])
                if event.data["n"] == acked[-1]:
                    break
    print("whole" if set(acked) <= set(seen) else f"lost {set(acked) - set(seen)}")


asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.requirement("SDKLOG-PLACES")
def test_a_directory_that_cannot_be_written_is_refused_with_its_place(tmp_path: Path) -> None:
    place = tmp_path / "no"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount")
    script = tmp_path / "app.py"
    script.write_text(SCRIPT, encoding="utf-8")
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "loom", "run", str(script), "--data", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert ended.returncode not in (0, -6, -11)
    assert str(place) in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.requirement("SDKLOG-PLACES")
async def test_the_directory_of_the_configuration_is_used_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_LOG__DIR", str(tmp_path / "data"))
    monkeypatch.setenv("LOOM_LOG__DURABLE", "order.>")
    app = shop()
    async with app.running() as ctx:
        assert (await ctx.emit("order.new", 1)).level == "disk"
        assert app.stats()["log"]["dir"] == str(tmp_path / "data")
    monkeypatch.setenv("LOOM_LOG__DURABLE", "order..")
    with pytest.raises(InvalidParams):
        async with app.running():
            raise AssertionError
