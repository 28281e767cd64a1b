"""Kill a real process at an exact syscall, and see what its log still has.

The victim (``crates/loom-log/examples/victim.rs``) publishes batches that follow from a seed, and
writes a line for each answer to a pipe. Whoever reads the pipe is the oracle: it outlives the
victim, and knows nothing of the log. strace ends the victim when one of its threads enters a
syscall for the N-th time, before that call is done; or it lets the call fail.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

ROOT: Final = Path(__file__).resolve().parents[3]


def _tracer() -> str | None:
    """Return where strace is, if it is there and may trace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    tried = subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, check=False)
    return strace if tried.returncode == 0 else None


STRACE: Final = _tracer()
LONGEST: Final = 60.0  # seconds that one life of a victim may take

Level: TypeAlias = Literal["os", "disk"]

# What changes a disk, and the write of an answer: a kill there is one after the sync.
DISK_CALLS: Final = (
    *("pwrite64", "pwritev", "pwritev2", "fdatasync", "fsync", "sync_file_range"),
    *("ftruncate", "fallocate", "openat", "mkdir", "mkdirat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "flock", "write"),
)


class BrokenPromiseError(AssertionError):
    """The log did not keep what it promised; its message says what, and how to see it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a victim is asked to do: ``batches`` is how many it publishes in one life."""

    seed: int
    batches: int = 40
    in_flight: int = 8
    level: Level = "disk"
    segment_bytes: int = 65_536
    snapshot_every: int = 0  # batches; 0: never
    keep_segments: int = 0  # 0: all of them
    backup_every: int = 0  # batches; 0: never
    again: bool = False  # publish again what was refused for want of space

    def arguments(self) -> list[str]:
        """Return them as the victim reads them."""
        return [
            f"seed={self.seed}",
            f"batches={self.batches}",
            f"in-flight={self.in_flight}",
            f"level={self.level}",
            f"segment-bytes={self.segment_bytes}",
            f"snapshot-every={self.snapshot_every}",
            f"keep-segments={self.keep_segments}",
            f"backup-every={self.backup_every}",
            f"again={int(self.again)}",
        ]


@dataclass(slots=True)
class Life:
    """What one life of a victim has told before it ended."""

    code: int
    acked: dict[int, int] = field(default_factory=dict[int, int])  # batch: position
    refused: dict[int, str] = field(default_factory=dict[int, str])  # batch: code
    acked_after_refused: list[int] = field(default_factory=list[int])
    problem: str = ""

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code == -signal.SIGKILL


@dataclass(slots=True)
class History:
    """All that was ever acked in one directory, over the lives of its victims."""

    load: Load
    acked: dict[int, int] = field(default_factory=dict[int, int])
    refused: set[int] = field(default_factory=set[int])

    def add(self, life: Life) -> None:
        """Enter what a life has told."""
        again = {b for b in life.acked.keys() & self.acked.keys() if self.acked[b] != life.acked[b]}
        expect(not again, f"batches {sorted(again)} were acked at two positions")
        self.acked |= life.acked
        self.refused |= life.refused.keys()


def expect(holds: bool, otherwise: str) -> None:
    """Stop where a promise is broken."""
    if not holds:
        raise BrokenPromiseError(otherwise)


@cache
def victim() -> Path:
    """Build the victim, once, and return where it is."""
    done = subprocess.run(
        [
            *("cargo", "build", "--quiet", "--locked", "--package", "loom-log"),
            *("--example", "victim", "--message-format", "json"),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    expect(done.returncode == 0, done.stderr)
    built = [json.loads(line).get("executable") for line in done.stdout.splitlines()]
    return Path(next(path for path in reversed(built) if path))


def live(load: Load, place: Path, *injections: str, wrapped: Sequence[str] = ()) -> Life:
    """Let a victim live, and return what it told.

    ``injections`` are strace's: ``pwrite64:signal=KILL:when=3``.
    """
    command = [str(victim()), "run", str(place), *load.arguments()]
    if injections:
        command = [*traced(injections), *command]
    process = subprocess.Popen(
        [*wrapped, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        told, problem = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise BrokenPromiseError(f"a victim hangs: {injections}, {load}") from None
    finally:
        reap(process)
    return read(process.returncode, told.decode(), problem.decode(errors="replace"))


def reap(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def traced(injections: Sequence[str]) -> list[str]:
    """Return the command that injects, and tells nothing."""
    assert STRACE is not None
    names = ",".join(sorted({one.partition(":")[0] for one in injections}))
    options = [word for one in injections for word in ("-e", f"inject={one}")]
    quiet = ("-qq", "-e", "signal=none", "-o", os.devnull)
    # Not with --seccomp-bpf: strace 6.1 then sends a signal at the first call only.
    return [STRACE, "-f", *quiet, "-e", f"trace={names}", *options]


def read(code: int, told: str, problem: str) -> Life:
    """Read a victim's lines; one that has no end was not told."""
    life = Life(code=code, problem=problem[-2_000:])
    for line in told.split("\n")[:-1]:
        word, *rest = line.split(" ", 2)
        if word == "acked":
            if life.refused:
                life.acked_after_refused.append(int(rest[0]))
            life.acked[int(rest[0])] = int(rest[1])
        elif word == "refused":
            life.refused[int(rest[0])] = rest[1]
        elif word == "failed":
            life.problem = line
    return life


def places(load: Load) -> Mapping[str, int]:
    """Return how often one thread of a victim makes each call: where it can be killed."""
    return _places(load.level, load.batches, load.in_flight, load.snapshot_every > 0)


@cache
def _places(level: Level, batches: int, in_flight: int, snapshots: bool) -> Mapping[str, int]:
    assert STRACE is not None
    load = Load(
        seed=1,
        level=level,
        batches=batches,
        in_flight=in_flight,
        snapshot_every=10 if snapshots else 0,
        keep_segments=2 if snapshots else 0,
    )
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "calls"
        names = ",".join(f"?{name}" for name in DISK_CALLS)
        tracer = [STRACE, "-f", "-qq", "-o", str(log), "-e", f"trace={names}"]
        life = live(load, Path(place) / "data", wrapped=tracer)
        expect(life.code == 0, f"a victim that nobody kills fails: {life.problem}")
        by_thread = Counter[tuple[str, str]]()
        for line in log.read_text(errors="replace").splitlines():
            thread, _, rest = line.partition(" ")
            name = rest.strip().partition("(")[0]
            if name in DISK_CALLS:
                by_thread[thread, name] += 1
    found: dict[str, int] = {}
    for (_, name), count in by_thread.items():
        found[name] = max(count, found.get(name, 0))
    return found


def inspect(history: History, place: Path) -> dict[str, Any]:
    """Open the log after a life, and hold it against all that was acked.

    The inspector is another process. It checks that what it recovers is a prefix of what was
    published, each byte of it, and that the state folded from the newest snapshot and from the
    records behind it is that of the prefix; it publishes one more batch, closes the log, and reads
    it again as a reader does.
    """
    command = [str(victim()), "check", str(place), *history.load.arguments()]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST
    )
    expect(done.returncode == 0, f"it does not open: {done.stdout[-500:]}{done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    judge(history, found)
    history.acked[found["recovered"]] = found["next"]
    return found


def judge(history: History, found: Mapping[str, Any]) -> None:
    """Hold what an inspector has found against all that was acked."""
    kept: dict[int, int] = {int(batch): n for batch, n in found["positions"].items()}
    first, end = found["first"], found["recovered"]
    lost = sorted(b for b in history.acked if b >= end or (b >= first and b not in kept))
    expect(not lost, f"acked and lost: {lost}, {end} were recovered")
    moved = sorted(b for b, n in history.acked.items() if b in kept and kept[b] != n)
    expect(not moved, f"acked at another position: {moved}")
    expect(found["state"] == found["expected"], "the state is not that of the prefix")


@dataclass(slots=True)
class Count:
    """What a campaign has done."""

    kills: int = 0
    missed: int = 0  # the victim ended before its N-th call
    faults: int = 0
    states: int = 0  # different ones that a power cut may leave
    acked: int = 0
    torn: int = 0  # recoveries that cut a torn tail
    by_call: dict[str, int] = field(default_factory=dict[str, int])
    failures: list[str] = field(default_factory=list[str])

    def add(self, other: "Count") -> None:
        """Add what another has seen."""
        self.kills += other.kills
        self.missed += other.missed
        self.faults += other.faults
        self.states += other.states
        self.acked += other.acked
        self.torn += other.torn
        for name, kills in other.by_call.items():
            self.by_call[name] = kills + self.by_call.get(name, 0)
        self.failures += other.failures


def kill_trial(seed: int, count: Count) -> None:
    """Kill a victim up to three times in one directory, and inspect the log after each time."""
    dice = random.Random(seed)
    load = Load(
        seed=seed,
        level=dice.choice(("disk", "disk", "os")),
        batches=dice.choice((12, 40)),
        in_flight=dice.choice((1, 8, 32)),
        snapshot_every=dice.choice((0, 10)),
        keep_segments=2,
    )
    with tempfile.TemporaryDirectory(prefix="loom-kill-") as place:
        data = Path(place) / "data"
        history = History(load)
        for _ in range(dice.randint(1, 3)):
            calls = places(load)
            names = sorted(calls)
            often = [calls[name] for name in names] if dice.random() < 0.5 else None
            name = dice.choices(names, often)[0]
            when = dice.randint(1, calls[name])
            life = live(load, data, f"{name}:signal=KILL:when={when}")
            if life.killed:
                count.kills += 1
                count.by_call[name] = 1 + count.by_call.get(name, 0)
            else:
                expect(life.code == 0, f"it fails without a kill: {life.code}, {life.problem}")
                count.missed += 1
            with reproducible(f"kill seed {seed}: {name} {when}, {load}"):
                history.add(life)
                expect(not life.refused, f"it was refused {life.refused}")
                found = inspect(history, data)
            count.torn += found["torn"] > 0
        count.acked += len(history.acked)


class reproducible:  # noqa: N801 - it reads as a statement
    """Add to a broken promise how to see it again."""

    def __init__(self, how: str) -> None:
        self._how = how

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _type: object, error: BaseException | None, _stack: object) -> None:
        if isinstance(error, BrokenPromiseError):
            raise BrokenPromiseError(f"{error}\n  {self._how}") from error


def fault_trial(seed: int, count: Count) -> None:
    """Let a call of the disk fail, and see that nothing is acked behind it and nothing was lost."""
    dice = random.Random(seed)
    kind = dice.choice(("sync", "write", "interrupted", "full"))
    if kind == "sync":
        failing_sync(dice.randint(1, 200), count)
        return
    load = Load(
        seed=seed,
        in_flight=dice.choice((1, 8)) if kind == "interrupted" else 1,
        batches=40,
        snapshot_every=dice.choice((0, 10)),
        again=kind == "full",
    )
    name = "fdatasync" if kind == "interrupted" and dice.random() < 0.3 else "pwrite64"
    when = dice.randint(1, max(1, places(load).get(name, 1)))
    error = {"write": "EIO", "interrupted": "EINTR", "full": "ENOSPC"}[kind]
    last = "" if kind == "write" else f"..{when + dice.randint(0, 5)}"
    _fail(load, f"{name}:error={error}:when={when}{last}", count, goes_on=kind != "write")


def failing_sync(number: int, count: Count) -> None:
    """Let the N-th sync of a thread fail, once; the disk is well again afterwards."""
    load = Load(seed=number, batches=300, in_flight=1, segment_bytes=262_144)
    _fail(load, f"fdatasync:error=EIO:when={number}", count, goes_on=False)


def _fail(load: Load, injection: str, count: Count, *, goes_on: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="loom-fault-") as place:
        data = Path(place) / "data"
        with reproducible(f"{injection}, {load}"):
            history = History(load)
            life = live(load, data, injection)
            history.add(life)
            expect(life.code in {0, 1, 3}, f"it ends with {life.code}: {life.problem}")
            if not goes_on:
                late = life.acked_after_refused
                expect(not late, f"batches {late} were acked after a failure")
            if goes_on and not life.acked:
                expect(life.problem.startswith("failed "), f"no typed error: {life.problem}")
            found = inspect(history, data)
    count.faults += life.code != 0 or goes_on
    count.torn += found["torn"] > 0
    count.acked += len(history.acked)
