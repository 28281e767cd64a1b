"""Every state in which a power cut may leave the disk, of what a real process did to it.

In the way of ALICE (Pillai et al., "All File Systems Are Not Created Equal: On the Complexity of
Crafting Crash-Consistent Applications", OSDI 2014): the victim runs under strace, each call that
changes a file or a directory is replayed into a model of the disk, and between any two of them the
model says what may be there after a power cut. The content of a file is certain when the file was
synced after it was written, a name when its directory was; of the rest all, nothing or any part may
have come to the disk, in any order, and a page may be torn at 512 bytes. A rename is there or is
not. A sync that failed made nothing certain, and no later sync does so for what it should have; of
names that holds until the process ends.

Each state is written to a directory, and the victim opens it: what was acked at that moment must be
there, and a backup or a restored log that has its name must be whole. The next life begins in such
a state, or in that of a killed process: all is there then, and no more is certain than before.
"""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tests.log.kill.disk import (
    HOWS,
    Cut,
    Disk,
    How,
    LeftOut,
    Step,
    Tree,
    certain,
    found_at,
    parse,
    signature,
    told_bytes,
    written,
)
from tests.log.kill.harness import (
    LONGEST,
    STRACE,
    Count,
    History,
    Load,
    expect,
    judge,
    reproducible,
    victim,
)

_TRACED: Final = (
    *("openat", "close", "dup", "dup2", "dup3", "fcntl", "lseek"),
    *("write", "pwrite64", "ftruncate", "fsync", "fdatasync"),
    *("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2"),
    # None of these is replayed: a trace that has one does not end as the disk does, and says so.
    *("writev", "pwritev", "pwritev2", "fallocate", "truncate", "copy_file_range", "sendfile"),
    *("link", "linkat", "symlink", "symlinkat", "creat", "open"),
)
# The model says what would be on the disk: what is written in between needs none.
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_POINTS: Final = 80  # at which a life is looked at
_FEW: Final = 30
_BEGINNING: Final = 15  # names that a life gives before it has begun


class Checker:
    """A victim that checks one directory after the other."""

    def __init__(self, load: Load, place: Path) -> None:
        self._place = place
        self._known: dict[bytes, str] = {}
        self._process = subprocess.Popen(
            [str(victim()), "serve", str(place), *load.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=LONGEST)

    def found(self, what: str, tree: Tree, below: str) -> dict[str, Any]:
        """Return what it finds in the directory ``below`` of a state."""
        prefix = f"{below}/"
        part = {
            path.removeprefix(prefix): content
            for path, content in tree.items()
            if path.startswith(prefix)
        }
        key = signature(part)
        if key not in self._known:
            self._known[key] = self._asked(what, part)
        told = self._known[key]
        expect(told.startswith("{"), told)
        found: dict[str, Any] = json.loads(told)
        return found

    def _asked(self, what: str, tree: Tree) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory(dir=self._place) as place:
            written(tree, Path(place) / "it")
            self._process.stdin.write(f"{what} {place}/it\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith(("{", "broken: ")):
                    return line
        return "it died"


@dataclass(slots=True)
class Told:
    """What was told to the one who reads the pipe, by the path of what it is about."""

    logs: dict[str, History] = field(default_factory=dict[str, History])
    backups: dict[str, History] = field(default_factory=dict[str, History])


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One life of a victim: where its log is, below the root, and what it does there."""

    data: str
    restores: str | None = None  # a backup, instead of publishing
    injection: str | None = None  # strace's: a call that fails


def trace(life: Life, load: Load, root: Path) -> list[Step]:
    """Let a victim live, and return what it did."""
    assert STRACE is not None
    command = [str(victim()), "run", str(root / life.data), *load.arguments()]
    if life.restores is not None:
        command[1] = "restore"
        command.insert(3, str(root / life.restores))
    with tempfile.TemporaryDirectory(prefix="loom-trace-") as place:
        calls = Path(place) / "calls"
        names = ",".join(f"?{name}" for name in _TRACED)
        options = ["-f", "-qq", "-xx", "-s", "16777216", "-e", "signal=none", "-o", str(calls)]
        options += ["-e", f"trace={names}"]
        if life.injection is not None:
            options += ["-e", f"inject={life.injection}"]
        done = subprocess.run(
            [STRACE, *options, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
        fine = {0, 1, 3} if life.injection is not None else {0}
        expect(done.returncode in fine, f"a victim fails: {done.stdout[-500:]}{done.stderr[-500:]}")
        with calls.open(encoding="ascii") as lines:
            return parse(lines)


class Chain:
    """Lives below one directory, each from what the last one left, and what they may leave."""

    def __init__(self, load: Load, place: Path, left_out: LeftOut | None = None) -> None:
        self.load = load
        self.root = place / "disk"
        self.disk = Disk(self.root)
        self.told = Told()
        self.states = 0
        self._left_out = left_out
        self._seen: set[bytes] = set()

    def live(
        self,
        life: Life,
        points: int,
        checker: Checker,
        dice: random.Random,
        killed: int | None = None,
    ) -> None:
        """Let a victim live, look at what a power cut may leave, and end it somewhere.

        It is killed when it has changed the name with this number; without one it is killed
        anywhere, or the power is cut there.
        """
        shutil.rmtree(self.root, ignore_errors=True)
        written(self.disk.now(), self.root)
        steps = trace(life, self.load, self.root)
        whole = self._begun()[0]
        for step in steps:
            whole.replay(step)
        expect(whole.now() == found_at(self.root), "the replay has not what the disk has")
        named = [at for at, step in enumerate(steps) if step.names and step.call.result != -1]
        chosen = set(dice.sample(named, min(len(named), points // 2)))
        matter = [at for at, step in enumerate(steps) if step.matters]
        chosen |= set(dice.sample(matter, min(len(matter), points - len(chosen))))
        ends = (
            dice.randrange(len(steps)),
            dice.choice(named[:_BEGINNING] or [0]),
            len(steps) - 1,
        )
        end = dice.choice(ends) if killed is None else named[killed % len(named)]
        disk, told = self._begun()
        for at, step in enumerate(steps):
            disk.replay(step)
            self._take(step, life, told)
            if at in chosen:
                self._look(life, disk, told, checker, dice)
            if at == end:
                self.disk, self.told = copy.deepcopy((disk, told))
        if killed is None and dice.random() < 0.5:
            cut = Cut(dice, dice.choice(HOWS), dice.choice(HOWS))
            self.disk = certain(self.disk.after(cut), self.root)
        else:
            self.disk.killed()

    def _begun(self) -> tuple[Disk, Told]:
        disk, told = copy.deepcopy((self.disk, self.told))
        if self._left_out is not None:
            disk.left_out = self._left_out
        return disk, told

    def _take(self, step: Step, life: Life, told: Told) -> None:
        """Read an answer; it counts as soon as its write has begun."""
        if not step.begins or step.call.name != "write" or step.call.args[0] != "1":
            return
        for line in told_bytes(step.call.args[1]).decode().splitlines():
            word, *rest = line.split(" ")
            if word == "acked":
                log = told.logs.setdefault(life.data, History(self.load))
                batch, position = int(rest[0]), int(rest[1])
                again = log.acked.get(batch, position)
                expect(again == position, f"{batch} was acked at {again} and at {position}")
                log.acked[batch] = position
            elif word == "backed":
                path = str(Path(life.data).with_name(f"backup-{rest[0]}"))
                told.backups[path] = self._backed(path, told)
            elif word == "restored":
                assert life.restores is not None
                told.logs[life.data] = copy.deepcopy(told.backups[life.restores])

    def _backed(self, path: str, told: Told) -> History:
        """Return what is in a backup, by its name and by what was acked to the log beside it."""
        batches = path.rpartition("-")[2]
        for data, log in told.logs.items():
            if Path(data).parent == Path(path).parent:
                acked = {b: n for b, n in log.acked.items() if b < int(batches)}
                return History(self.load, acked)
        return History(self.load)

    def _look(
        self, life: Life, disk: Disk, told: Told, checker: Checker, dice: random.Random
    ) -> None:
        hows: list[tuple[How, How]] = [("none", "none"), ("all", "none"), ("none", "all")]
        more: list[tuple[How, How]] = [(dice.choice(HOWS), dice.choice(HOWS)) for _ in range(4)]
        hows += more
        for names, contents in hows:
            tree = disk.after(Cut(dice, names, contents))
            key = signature(tree)
            self.states += key not in self._seen
            self._seen.add(key)
            with reproducible(f"{life}, names: {names}, contents: {contents}"):
                self._hold(life, tree, told, checker)

    def _hold(self, life: Life, tree: Tree, told: Told, checker: Checker) -> None:
        """Hold a state against what was told."""
        for path, log in told.logs.items():
            judge(log, checker.found("check", tree, path))
        if life.data not in told.logs and any(p.startswith(f"{life.data}/") for p in tree):
            # What is not told yet is not there, or is there as if it were told.
            wanted = History(self.load)
            if life.restores is not None:
                wanted = told.backups[life.restores]
            judge(wanted, checker.found("check", tree, life.data))
        for path in told.backups:
            expect(path in tree, f"{path} was made and is not there")
        for path in tree:
            if re.fullmatch(r"(.*/)?backup-\d+", path):
                judge(self._backed(path, told), checker.found("verify", tree, path))


def state_trial(seed: int, count: Count) -> None:
    """Follow a log that is killed when it begins, and another over some lives."""
    dice = random.Random(seed)
    begins = Load(seed=seed, batches=2, in_flight=1)
    lives = Load(
        seed=seed,
        batches=dice.choice((12, 40, 90)),
        in_flight=dice.choice((1, 8, 32)),
        snapshot_every=dice.choice((6, 10, 40)),
        keep_segments=1,
        backup_every=dice.choice((0, 15, 40)),
    )
    life = Life(data=dice.choice(("data", "deep/down/data")))
    with (
        tempfile.TemporaryDirectory(prefix="loom-states-", dir=MEMORY) as place,
        reproducible(f"states seed {seed}: {begins}"),
        Checker(begins, Path(place)) as checker,
    ):
        chain = Chain(begins, Path(place))
        chain.live(life, _FEW, checker, dice, killed=seed)
        chain.live(life, _FEW, checker, dice)
        count.states += chain.states
    with (
        tempfile.TemporaryDirectory(prefix="loom-states-", dir=MEMORY) as place,
        reproducible(f"states seed {seed}: {lives}"),
        Checker(lives, Path(place)) as checker,
    ):
        chain = Chain(lives, Path(place))
        life = Life(data=life.data, injection=_failure(dice))
        for number in range(dice.randint(2, 4)):
            if number > 0:
                life = _next(chain, life, dice)
            chain.live(life, _POINTS, checker, dice)
        count.states += chain.states
        count.acked += sum(len(log.acked) for log in chain.told.logs.values())


def _next(chain: Chain, life: Life, dice: random.Random) -> Life:
    """Choose how it goes on: with a log made of a backup, or a log that goes on and may fail."""
    told, there = chain.told, chain.disk.now()
    backups = sorted(path for path in told.backups if path in there)
    target = "other/place/data"
    if backups and target not in there and dice.random() < 0.6:
        return Life(data=target, restores=dice.choice(backups))
    data = target if target in there and target in told.logs else life.data
    if data == target and life.restores is not None and target not in told.logs:
        data = next(iter(told.logs))
    return Life(data=data, injection=_failure(dice))


def _failure(dice: random.Random) -> str | None:
    """Choose a sync of each thread that fails, mostly none."""
    if dice.random() < 0.7:
        return None
    name = dice.choice(("fsync", "fsync", "fdatasync"))
    return f"{name}:error=EIO:when={dice.choice((1, dice.randint(1, 40)))}"
