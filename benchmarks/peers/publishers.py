"""The log alone, in Rust, and SQLite in its place: the bench ``publishers`` of loom-log."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from benchmarks import disk
from benchmarks.model import NotInstalledError, Sample

_ROOT: Final = Path(__file__).resolve().parents[2]


def publish(count: int, side: str) -> Sample:
    """Let 256 publishers wait for the disk, and publish ``count`` records."""
    with disk.directory() as place:
        return run(side, count, place)


def run(side: str, count: int, place: Path) -> Sample:
    """Run one side of the bench in a directory.

    Raises:
        NotInstalledError: there is no cargo here.
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        raise NotInstalledError("cargo")
    done = subprocess.run(
        [
            *(cargo, "bench", "--quiet", "--locked", "--package", "loom-log"),
            *("--bench", "publishers", "--target-dir", str(_ROOT / "target")),
            *("--", side, str(count), str(place)),
        ],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    figures: Sample = json.loads(done.stdout.splitlines()[-1])
    return figures
