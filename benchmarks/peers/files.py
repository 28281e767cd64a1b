"""A bare file: each record is written and synced before the next one, without a log around it."""

import os
from pathlib import Path
from time import perf_counter_ns

from benchmarks import disk
from benchmarks.model import Sample
from benchmarks.workload import EVENT, WARM_UP, check, encode, percentile

_ZEROS = 1 << 20  # bytes that are written at once, to fill the file


def append(count: int) -> Sample:
    """Append each record to a file that grows."""
    with disk.directory() as place:
        return _write(place / "grows", count)


def overwrite(count: int) -> Sample:
    """Write each record into a file that has its size already, and zeros in it."""
    with disk.directory() as place:
        path = place / "zeroed"
        with path.open("wb") as file:
            for _ in range(max(1, 2 * count * len(encode(EVENT)) // _ZEROS + 1)):
                file.write(bytes(_ZEROS))
            file.flush()
            os.fsync(file.fileno())
        return _write(path, count)


def _write(path: Path, count: int) -> Sample:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    at, taken = 0, list[int]()
    try:
        for _ in range(max(1, count // WARM_UP) + count):
            start = perf_counter_ns()
            at += os.pwrite(file, encode(EVENT), at)
            os.fdatasync(file)
            taken.append(perf_counter_ns() - start)
    finally:
        os.close(file)
    check(path.read_bytes()[:at] == encode(EVENT) * len(taken), "a record is missing")
    measured = taken[-count:]
    return {
        "rate": count / (sum(measured) / 1e9),
        "p50": percentile(measured, 50) / 1e3,
        "p99": percentile(measured, 99) / 1e3,
    }
