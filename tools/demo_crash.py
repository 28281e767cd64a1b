"""Kill the trio twice in the middle of its work, and see what it came to: ``make demo-crash``."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KILLED_AFTER = (3, 4)  # archived answers in the first and in the second life
MOMENT = 0.25  # seconds after that within which it is killed


@dataclass
class Told:
    """What the processes have told before they were killed."""

    asked: list[str] = field(default_factory=list[str])
    archived: list[str] = field(default_factory=list[str])

    def hear(self, line: str) -> None:
        """Enter a line that a process has printed."""
        word, _, what = line.partition(" ")
        if word == "asked" and what not in self.asked:
            self.asked.append(what)
        elif word == "archived":
            self.archived.append(what)


@contextmanager
def trio(data: Path, archive: Path) -> Generator[subprocess.Popen[str]]:
    """Start the trio; it does not outlive the block."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")},
        "LOOM_LOG__DURABLE": "question.asked,answer.ready,answer.archived",
    }
    command = [sys.executable, "-m", "examples.crash.app", str(data), str(archive)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def live(data: Path, archive: Path, told: Told, kill_after: int | None) -> int:
    """Let the trio work; kill it in the middle if it is to be killed. Return how it ended."""
    with trio(data, archive) as process:
        assert process.stdout is not None
        before = len(told.archived)
        for line in process.stdout:
            told.hear(line.rstrip("\n"))
            if kill_after is not None and len(told.archived) - before >= kill_after:
                time.sleep(random.random() * MOMENT)
                process.send_signal(signal.SIGKILL)
                break
        rest = process.stdout.read()
        for line in rest.splitlines():
            told.hear(line)
        return process.wait()


def main() -> int:
    """Run the demonstration; 0 if nothing was lost and nothing was done twice."""
    told = Told()
    start, code = time.monotonic(), 0
    place = Path(tempfile.mkdtemp(prefix="loom-crash-"))
    is_watched = sys.stdout.isatty()
    try:
        data, archive = place / "data", place / "archive.txt"
        for life, kill_after in enumerate((*KILLED_AFTER, None), 1):
            print(f"{time.monotonic() - start:5.1f} s  the trio starts, life {life}", flush=True)
            code = live(data, archive, told, kill_after)
            written = len(lines(archive))
            how = "killed with kill -9" if code == -signal.SIGKILL else f"ended with {code}"
            print(
                f"{time.monotonic() - start:5.1f} s  {how}: {len(told.asked)} questions asked,"
                f" {written} answers in the archive",
                flush=True,
            )
        found = verdict(told, code, archive)
        if is_watched:
            show_next(data)
        return found
    finally:
        if not is_watched:
            shutil.rmtree(place)


def show_next(data: Path) -> None:
    """Name the commands that look into the log of the three lives, which is kept for them."""
    command = Path(sys.executable).with_name("loom")
    shown = command.relative_to(ROOT) if command.is_relative_to(ROOT) else command
    print("\nLook into what was logged:")
    for words in ("runs", "effects list", "logs --level warning"):
        print(f"  {shown} {words} --data {data}")


def lines(archive: Path) -> list[str]:
    """Return what was written into the archive, by whoever lived."""
    return archive.read_text(encoding="utf-8").splitlines() if archive.exists() else []


def verdict(told: Told, code: int, archive: Path) -> int:
    """Hold the archive against what was asked."""
    by_question = Counter(line.split(" ")[1] for line in lines(archive))
    repeated = sum(times - 1 for times in by_question.values())
    lost = len(set(told.asked) - by_question.keys())
    print()
    print(f"questions acked from the disk   {len(told.asked)}")
    print(f"answered in the archive         {len(by_question)}")
    print(f"lost events                     {lost}")
    print(f"repeated keyed effects          {repeated}")
    well = code == 0 and lost == 0 and repeated == 0 and len(told.asked) > 0
    print("nothing was lost, nothing was done twice" if well else "THIS IS NOT AS IT SHOULD BE")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
