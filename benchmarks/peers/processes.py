"""Whole processes: how long one takes from start to end, and the most memory it held."""

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks.model import Sample

# Linux tells the peak of a process to itself only: to its parent it tells the parent's own too.
_TELL_PEAK = """
try:
    print(open("/proc/self/status").read())
except OSError:
    pass
"""


def python(*arguments: str) -> Sequence[str]:
    """Return the command that runs this interpreter, free of the environment's settings."""
    return (sys.executable, "-I", *arguments)


def measure_time(count: int, command: Sequence[str]) -> Sample:
    """Run ``command`` ``count`` times, after once to warm up, and return the median."""
    _run(command)
    return {"time": statistics.median(_seconds(command) for _ in range(count)) * 1e3}


def measure_program(count: int, program: str) -> Sample:
    """Return time and, where the system tells it, memory of a program in Python."""
    figures = dict(measure_time(count, python("-c", program)))
    told = re.search(r"VmHWM:\s+(\d+) kB", _run(python("-c", program + _TELL_PEAK)))
    if told is not None:
        figures["memory"] = int(told[1]) / 1024
    return figures


def resident(process: int | str = "self") -> float | None:
    """Return how much of a process is in memory now, in MiB; None where no system tells."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_since(before: float | None) -> Sample:
    """Return as a figure what this process has grown by since ``resident`` said ``before``."""
    now = resident()
    return {} if before is None or now is None else {"memory": now - before}


def _seconds(command: Sequence[str]) -> float:
    start = perf_counter()
    _run(command)
    return perf_counter() - start


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return done.stdout
