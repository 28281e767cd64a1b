"""Whole processes: how long one takes from start to end, and the most memory it held."""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter

from benchmarks.model import Metric, Sample

_UNIT = 1 if sys.platform == "darwin" else 1024  # in which getrusage tells memory, in bytes


def python(*arguments: str) -> Sequence[str]:
    """Return the command that runs this interpreter, free of the environment's settings."""
    return (sys.executable, "-I", *arguments)


def measure(count: int, command: Sequence[str]) -> Sample:
    """Run ``command`` ``count`` times, after once to warm up, and return the medians."""
    _run(command)
    runs = [_run(command) for _ in range(count)]
    figures: dict[Metric, float] = {"time": statistics.median(run[0] for run in runs) * 1e3}
    memory = statistics.median(run[1] for run in runs)
    if memory > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
        figures["memory"] = memory * _UNIT / 2**20
    return figures


def _run(command: Sequence[str]) -> tuple[float, int]:
    """Return seconds and the peak of memory, which is never told below that of this process."""
    start = perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss
