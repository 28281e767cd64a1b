"""Kill an app in Python at an exact syscall, and see what its durable events came to.

In each life the client publishes the same numbers with the same ids, and more: what an earlier life
had stored must be answered with its old position, and what was acked must be handled in the end.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from tests.log.kill.harness import (
    LONGEST,
    ROOT,
    BrokenPromiseError,
    Count,
    expect,
    reap,
    reproducible,
    traced,
)

_EACH: Final = 40  # numbers that a life publishes more than the one before
_CALLS: Final = ("pwrite64", "pwrite64", "fdatasync", "write")
_LATEST: Final = 60  # the call at which a life is killed at the latest


@dataclass(slots=True)
class _Story:
    """What the lives in one directory have told."""

    acked: dict[int, str] = field(default_factory=dict[int, str])  # number: position
    handled: set[int] = field(default_factory=set[int])
    logged: dict[int, str] = field(default_factory=dict[int, str])
    done: bool = False

    def hear(self, told: str) -> None:
        """Enter the whole lines of one life."""
        self.logged.clear()
        for line in told.split("\n")[:-1]:
            word, *rest = line.split(" ")
            if word == "acked":
                number, position = int(rest[0]), rest[1]
                before = self.acked.setdefault(number, position)
                expect(before == position, f"{number} is at {position} now, and was at {before}")
            elif word == "handled":
                self.handled.add(int(rest[0]))
            elif word == "logged":
                number = int(rest[0])
                expect(number not in self.logged, f"{number} is in the log twice")
                self.logged[number] = rest[1]
            elif word == "done":
                self.done = True


def client_trial(seed: int, count: Count) -> None:
    """Kill a client up to three times in one directory; then let it finish, and look."""
    dice = random.Random(seed)
    at_once = dice.choice((1, 4, 16))
    story = _Story()
    with tempfile.TemporaryDirectory(prefix="loom-client-") as place:
        for life in range(1, dice.randint(1, 3) + 1):
            name, when = dice.choice(_CALLS), dice.randint(1, _LATEST)
            injection = f"{name}:signal=KILL:when={when}"
            with reproducible(f"client seed {seed}, life {life}: {injection}, {at_once} at once"):
                code, told = _client(
                    *("run", place, "0", str(life * _EACH), str(at_once)), injection=injection
                )
                story.hear(told)
                if code == 0:
                    count.missed += 1
                else:
                    expect(code < 0, f"it fails without a kill: {code}")
                    count.kills += 1
                    count.by_call[name] = 1 + count.by_call.get(name, 0)
                _look(story, place, at_once)
        count.acked += len(story.acked)


def _look(story: _Story, place: str, at_once: int) -> None:
    """Let the app live until it has handled what was acked, and read its log."""
    owed = story.acked.keys() - story.handled
    story.done = False
    code, told = _client("check", place, told="".join(f"{number}\n" for number in owed))
    story.hear(told)
    expect(code == 0 and story.done, f"it does not go on: {code}, {told[-500:]}")
    lost = sorted(story.acked.keys() - story.logged.keys())
    expect(not lost, f"acked and not in the log: {lost}")
    moved = [n for n, position in story.acked.items() if story.logged[n] != position]
    expect(not moved, f"at another place than was acked: {moved}")
    never = sorted(story.acked.keys() - story.handled)
    expect(not never, f"acked and never handled: {never}")
    by_publisher: dict[int, list[int]] = defaultdict(list)
    for number in story.logged:
        by_publisher[number % at_once].append(number)
    for publisher, numbers in by_publisher.items():
        wanted = list(range(publisher, publisher + at_once * len(numbers), at_once))
        expect(numbers == wanted, f"publisher {publisher} has sent {wanted}, not {numbers}")


def _client(*words: str, injection: str | None = None, told: str = "") -> tuple[int, str]:
    """Let a client live; return how it ended and what it told."""
    command = [sys.executable, "-m", "tests.log.kill.client", *words]
    if injection is not None:
        command = [*traced([injection]), *command]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("LOOM_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        heard, problem = process.communicate(told, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise BrokenPromiseError(f"a client hangs: {words}") from None
    finally:
        reap(process)
    if process.returncode > 0:
        heard += problem[-1_500:]
    return process.returncode, heard
