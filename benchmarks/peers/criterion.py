"""The engine alone, in Rust: ``cargo bench -p loom-core``, one case of it at a time."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.model import NotInstalledError

SUITE: Final = "bus"
_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_TARGET: Final = _ROOT / "target"
_WARM_UP: Final = 0.2  # seconds
_SAMPLES: Final = 20


def nanoseconds(count: int, bench: str) -> float:
    """Measure for about ``count`` milliseconds; return what one event of ``bench`` takes.

    Raises:
        NotInstalledError: there is no cargo here.
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        raise NotInstalledError("cargo")
    subprocess.run(
        [
            *(cargo, "bench", "--quiet", "--locked", "--package", "loom-core", "--bench", SUITE),
            *("--target-dir", str(_TARGET), "--", bench, "--exact", "--noplot"),
            *("--warm-up-time", str(_WARM_UP), "--measurement-time", str(count / 1_000)),
            *("--sample-size", str(_SAMPLES)),
        ],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return read(_TARGET / "criterion" / bench)


def read(folder: Path) -> float:
    """Return the median that the last run left in ``folder``, in nanoseconds."""
    told = json.loads((folder / "new" / "estimates.json").read_text(encoding="utf-8"))
    median: float = told["median"]["point_estimate"]
    return median
