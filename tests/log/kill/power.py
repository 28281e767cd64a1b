"""Cut the power: ``python -m tests.log.kill.power --seed S --trials N``, as root.

The data directory is on an ext4 of its own, in a file that is mounted as a loop device. The victim
is killed at some moment, and the file is copied while it is still mounted: the copy has what had
been given to the disk, and nothing of what the system was still keeping in memory. The copy is
mounted, and the log in it is opened.

All of it runs in a mount namespace of its own, so that no mount outlives the process, however it
ends.
"""

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.log.kill.harness import (
    LONGEST,
    BrokenPromiseError,
    History,
    Life,
    Load,
    expect,
    inspect,
    read,
    reap,
    reproducible,
    victim,
)

_IMAGE_BYTES: Final = 64 << 20
_TOOLS: Final = ("mount", "umount", "mkfs.ext4", "unshare", "cp")
_INSIDE: Final = "--inside"


def missing() -> str | None:
    """Say why no power can be cut here, or nothing."""
    if os.geteuid() != 0:
        return "it takes root to mount a disk image"
    absent = [tool for tool in _TOOLS if _tool(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}; make test-deps brings it"
    with tempfile.TemporaryDirectory() as place:
        image = _blank(Path(place))
        script = f"mount -o loop {image} {place}/mount && umount {place}/mount"
        (Path(place) / "mount").mkdir()
        tried = subprocess.run(
            ("unshare", "--mount", "sh", "-c", script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    return None if tried.returncode == 0 else f"no loop mounts here: {tried.stderr.strip()}"


@dataclass(slots=True)
class Cuts:
    """What a campaign has done."""

    cuts: int = 0
    acked: int = 0
    torn: int = 0  # recoveries that cut a torn tail
    behind: int = 0  # cuts after which fewer batches were there than a living system showed
    snapshots: int = 0  # cuts of victims that wrote snapshots and let segments go
    failures: list[str] = field(default_factory=list[str])


def trial(seed: int, place: Path, blank: Path, count: Cuts) -> None:
    """Cut the power once."""
    dice = random.Random(seed)
    load = Load(
        seed=seed,
        level=dice.choice(("disk", "disk", "disk", "os")),
        batches=100_000,
        in_flight=dice.choice((1, 16, 100, 100)),
        segment_bytes=dice.choice((65_536, 262_144)),
        snapshot_every=dice.choice((0, 20)),
        keep_segments=2,
    )
    image, copy = place / "image", place / "copy"
    _copy(blank, image)
    with _mounted(image, place / "mount") as disk:
        life = _live_until(load, disk / "data", dice.randint(1, 400), dice.random() * 0.004)
        _copy(image, copy)
    count.cuts += 1
    count.snapshots += load.snapshot_every > 0
    history = History(load)
    with reproducible(f"power seed {seed}: {load}"):
        expect(not life.refused, f"it was refused {life.refused}")
        if load.level == "disk":
            history.add(life)
        with _mounted(copy, place / "mount") as disk:
            found = inspect(history, disk / "data")
    count.torn += found["torn"] > 0
    count.behind += load.level == "os" and found["recovered"] < len(life.acked)
    count.acked += len(history.acked)
    image.unlink()
    copy.unlink()


def _live_until(load: Load, data: Path, acks: int, more: float) -> Life:
    """Let a victim live until it was told so many acks, and a little longer; kill it."""
    process = subprocess.Popen(
        [str(victim()), "run", str(data), *load.arguments()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    told, end = b"", time.monotonic() + LONGEST
    try:
        while told.count(b"acked") < acks:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            expect(bool(ready), f"a victim tells nothing: {load}")
            some = os.read(process.stdout.fileno(), 65_536)
            if not some:
                break
            told += some
        time.sleep(more)
    finally:
        reap(process)
    told += process.stdout.read()
    life = read(process.returncode, told.decode(), process.stderr.read().decode())
    process.stdout.close()
    process.stderr.close()
    expect(life.killed, f"a victim ended by itself: {life.code}, {life.problem}")
    return life


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(*command: str | Path) -> None:
    tool = _tool(str(command[0]))
    assert tool is not None
    subprocess.run([tool, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, check=True)


def _blank(place: Path) -> Path:
    """Make an empty ext4 in a file that takes no room yet."""
    image = place / "blank"
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    _run("mkfs.ext4", "-q", "-F", image)
    return image


def _copy(image: Path, to: Path) -> None:
    _run("cp", "--sparse=always", image, to)


@contextlib.contextmanager
def _mounted(image: Path, at: Path) -> Generator[Path]:
    at.mkdir(exist_ok=True)
    _run("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        _run("umount", at)


def cut(seed: int, trials: int) -> Cuts:
    """Cut the power so many times, in a process of its own; return what was seen."""
    command = [
        sys.executable,
        "-m",
        "tests.log.kill.power",
        "--seed",
        str(seed),
        "--trials",
        str(trials),
    ]
    victim()
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *command, _INSIDE],
        cwd=Path(__file__).resolve().parents[3],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Cuts(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run the trials and print what was seen as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument(_INSIDE, action="store_true", help="in a mount namespace already")
    chosen = parser.parse_args()
    if not chosen.inside:
        why = missing()
        if why is not None:
            sys.exit(why)
        print(json.dumps(asdict(cut(chosen.seed, chosen.trials))))
        return
    count = Cuts()
    with tempfile.TemporaryDirectory(prefix="loom-power-") as place:
        blank = _blank(Path(place))
        for number in range(chosen.trials):
            try:
                trial(chosen.seed + number, Path(place), blank, count)
            except BrokenPromiseError as error:
                count.failures.append(str(error))
            if (number + 1) % 10 == 0:
                print(f"{number + 1} power cuts", file=sys.stderr, flush=True)
    print(json.dumps(asdict(count)))


if __name__ == "__main__":
    main()
