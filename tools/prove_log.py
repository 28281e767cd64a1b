"""Prove the log: ``prove_log.py PIECE`` for one piece, ``prove_log.py page`` for the page.

Each piece runs for itself, shows how far it is, and leaves what it has counted in
``target/proof/PIECE.json``; the page is written from these. SCALE=10 does ten times as much.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "target" / "proof"
PAGE = ROOT / "docs" / "reliability.md"
END = "<!-- to here -->\n"
SCALE = int(os.environ.get("SCALE", "1"))
SEED = 1
SIMULATE = ("cargo", "run", "--quiet", "--release", "--locked", "-p", "loom-sim", "--")


def as_json(line: str) -> dict[str, Any]:
    """Read what a campaign of Python prints last."""
    told: dict[str, Any] = json.loads(line)
    return told


def as_words(line: str) -> dict[str, Any]:
    """Read what the simulator prints last; it stops at the first failure, and then not with 0."""
    numbers = re.match(r"(\d+) .* from seed (\d+) on(?:, (\d+) of them reported)?", line)
    assert numbers is not None, line
    tried, seed, reported = numbers.groups()
    return {"tried": int(tried), "seeds": f"from {seed}", "reported": int(reported or 0)}


class Piece(NamedTuple):
    """One piece of the proof: a command, and what the numbers mean that it prints last."""

    title: str
    command: Callable[[], Sequence[str]]
    tried: str  # the number that says how much was tried
    wanted: int
    needs: Callable[[], str | None] = lambda: None  # why it cannot run here, or nothing
    read: Callable[[str], dict[str, Any]] = as_json


def campaign(kind: str, wanted: int) -> Sequence[str]:
    """Return the command of a campaign of the harness."""
    return (
        *(sys.executable, "-m", "tests.log.kill.campaign", kind),
        *("--seed", str(SEED), "--wanted", str(wanted)),
    )


def of_strace() -> str | None:
    """Say what is missing to kill at a syscall."""
    from tests.log.kill.harness import STRACE

    return "strace is not installed" if STRACE is None else None


def of_power() -> str | None:
    """Say what is missing to cut the power."""
    from tests.log.kill import power

    return power.missing()


PIECES: Mapping[str, Piece] = {
    "points": Piece(
        "simulated crash points",
        lambda: (*SIMULATE, "log", "--points", str(1_000_000 * SCALE), "--seed", str(SEED)),
        "tried",
        200_000,
        read=as_words,
    ),
    "damage": Piece(
        "damages of larger logs: flipped bits, zeroed, stale and misplaced pages, cut files",
        lambda: (*SIMULATE, "damage", "--tries", str(10_000 * SCALE), "--seed", str(SEED)),
        "tried",
        10_000,
        read=as_words,
    ),
    "kills": Piece(
        "kills of a real process at an exact syscall",
        lambda: campaign("kills", 1_000 * SCALE),
        "kills",
        1_000,
        of_strace,
    ),
    "states": Piece(
        "states of the disk that a power cut may leave, of what a real process did",
        lambda: campaign("states", 10_000 * SCALE),
        "states",
        10_000,
        of_strace,
    ),
    "clients": Piece(
        "kills of an app in Python at an exact syscall",
        lambda: campaign("clients", 100 * SCALE),
        "kills",
        100,
        of_strace,
    ),
    "effects": Piece(
        "effects in an app that kills itself at each of five steps",
        lambda: (
            *(sys.executable, "-m", "tests.log.effects_trial"),
            *("--seed", str(SEED), "--trials", str(300 * SCALE)),
        ),
        "trials",
        300,
    ),
    "syncs": Piece(
        "syncs that fail (EIO), each of the first 200",
        lambda: campaign("syncs", 200),
        "faults",
        200,
        of_strace,
    ),
    "faults": Piece(
        "writes and syncs that fail, are interrupted, or find the disk full",
        lambda: campaign("faults", 200 * SCALE),
        "faults",
        100,
        of_strace,
    ),
    "power": Piece(
        "power cuts on a disk image",
        lambda: (
            *(sys.executable, "-m", "tests.log.kill.power"),
            *("--seed", str(SEED), "--trials", str(200 * SCALE)),
        ),
        "cuts",
        200,
        of_power,
    ),
}


def shown(command: Sequence[str]) -> tuple[int, str]:
    """Run a command whose lines are shown as they come; return how it ended, and its last line."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = ""
    with process:
        for line in process.stdout:
            last = line.rstrip("\n")
            if not last.startswith("{"):
                print(last, flush=True)
    return process.returncode, last


def run(name: str, pieces: Mapping[str, Piece]) -> int:
    """Run a piece and keep what it has counted."""
    piece = pieces[name]
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"{name}.json"
    kept.unlink(missing_ok=True)
    if (why := piece.needs()) is not None:
        print(f"left out: {piece.title}: {why}")
        return 0
    start = time.monotonic()
    code, last = shown(piece.command())
    seconds = time.monotonic() - start
    if code != 0 and not last.startswith("{"):
        print(f"{name} ended with {code}", file=sys.stderr)
        return 1
    told = piece.read(last)
    failures: list[str] = told.get("failures", [])
    enough = told[piece.tried] >= piece.wanted
    kept.write_text(json.dumps({**told, "seconds": seconds}), encoding="utf-8")
    print(f"{told[piece.tried]:,} {piece.title}, {len(failures)} failures")
    print("\n".join(failures))
    if not enough:
        print(f"that is fewer than {piece.wanted:,}", file=sys.stderr)
    return 0 if enough and not failures else 1


def page(pieces: Mapping[str, Piece], made_by: str) -> int:
    """Write what the pieces have counted into the page, where ``make`` of that name writes."""
    begin = f"<!-- written by make {made_by} -->\n"
    rows = ["| What | How many | Failures | Seeds | Seconds |", "|---|---|---|---|---|"]
    for name, piece in pieces.items():
        kept = KEPT / f"{name}.json"
        if not kept.exists():
            rows.append(f"| {piece.title} | not run | | | |")
            continue
        told: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        seeds = told.get("seeds", f"from {SEED}")
        failures = len(told.get("failures", []))
        rows.append(
            f"| {piece.title} | {told[piece.tried]:,}{details(told)} | {failures} | {seeds}"
            f" | {told['seconds']:.0f} |"
        )
    day = datetime.now(UTC).date().isoformat()
    machine = f"Run on {day}, {os.cpu_count()} cores, SCALE={SCALE}."
    written = "\n".join([machine, "", *rows, ""])
    text = PAGE.read_text(encoding="utf-8")
    between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(END)})", re.DOTALL)
    PAGE.write_text(between.sub(lambda _: written, text), encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)}")
    return 0


def details(told: Mapping[str, Any]) -> str:
    """Say what else a piece has counted, in a bracket."""
    words = {
        "acked": "acks that had to be there",
        "torn": "torn tails cut",
        "reported": "reported as damage, the others cut as a torn tail or harmless",
        "snapshots": "with snapshots and retention",
        "behind": "that lost what was only written",
        "events": "durable events",
        "handled_again": "turns that were given again",
        "p99_ms": "ms P99 of realtime events of a session beside it",
        "slowest_s": "s until the last was back, or found out",
    }
    parts = [f"{told[name]:,} {word}" for name, word in words.items() if told.get(name)]
    return f" ({'; '.join(parts)})" if parts else ""


def main(arguments: list[str], pieces: Mapping[str, Piece], made_by: str) -> int:
    """Do what was asked for."""
    if arguments == ["page"]:
        return page(pieces, made_by)
    if len(arguments) == 1 and arguments[0] in pieces:
        return run(arguments[0], pieces)
    print(f"arguments: {'|'.join((*pieces, 'page'))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:], PIECES, "prove-log"))
