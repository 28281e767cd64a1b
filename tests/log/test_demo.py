"""make demo-crash, as a person runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
@pytest.mark.requirement("DEMO-CRASH")
def test_the_trio_finishes_though_it_is_killed_twice_and_does_nothing_twice() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "demo_crash.py")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed with kill -9") == 2
    assert "lost events                     0\n" in done.stdout
    assert "repeated keyed effects          0\n" in done.stdout
