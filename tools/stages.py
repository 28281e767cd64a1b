"""Run the stages of ``make test``, ``lint``, ``prove`` … one after the other.

Each stage prints its time, a failed one does not keep the others from running, and what a stage
started ends with it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import prove_bridge as prove_the_bridge
import prove_log as prove_the_log

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTHON = sys.executable
NODE = "node_modules/.bin"
PYTEST = (PYTHON, "-m", "pytest", "-q")
VITEST = (f"{NODE}/vitest", "run", "--root", "js/sdk")
EVERYDAY = "not soak and not bench and not net"
WIRE = "spec/proto.bin#format=binpb"  # what has been released: it may grow, not change
RUST_TESTS = ("--workspace", "--exclude", "loom-python", "--locked")


class Stage(NamedTuple):
    """One command, and how long it may take."""

    name: str
    command: tuple[str, ...]
    seconds: int = 600


LINT = (
    Stage("generated files", (PYTHON, "tools/gen.py", "--check")),
    Stage("rust format", ("cargo", "fmt", "--all", "--check")),
    Stage("python format", (str(BIN / "ruff"), "format", "--check", "--quiet", ".")),
    Stage("python style", (str(BIN / "ruff"), "check", "--quiet", ".")),
    Stage("import directions", (str(BIN / "lint-imports"), "--no-cache", "--no-logo")),
    Stage(
        "rust style",
        ("cargo", "clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"),
    ),
    Stage("python types", (f"{NODE}/pyright", "--pythonpath", PYTHON)),
    Stage("javascript style", (f"{NODE}/biome", "check", "--error-on-warnings")),
    Stage("javascript types", (f"{NODE}/tsc", "--project", "js/sdk")),
    Stage("wire style", (f"{NODE}/buf", "lint")),
    Stage("wire compatibility", (f"{NODE}/buf", "breaking", "--against", WIRE)),
    Stage("engine's stub", (PYTHON, "-m", "mypy.stubtest", "loom._engine")),
)
TEST = (
    *LINT,
    Stage("rust tests", ("cargo", "test", "--quiet", *RUST_TESTS)),
    Stage("python tests", (*PYTEST, "-n", "2", "-m", f"{EVERYDAY} and not e2e"), 900),
    Stage("javascript tests", (*VITEST, "--project", "!browser"), 300),
    Stage("javascript in a browser", (*VITEST, "--project", "browser"), 180),
    # On its own: it compiles on all cores, which would starve the tests beside it.
    Stage("the product", (*PYTEST, "-m", f"{EVERYDAY} and e2e"), 900),
)


def prove() -> Iterator[Stage]:
    """The long checks; those whose tool is not installed are named and left out."""
    if shutil.which("cargo-deny"):
        yield Stage("licences and advisories", ("cargo", "deny", "--all-features", "check"))
    else:
        print("left out, cargo-deny is not installed: licences and advisories", flush=True)
    seeds = str(20_000 * int(os.environ.get("SCALE", "1")))
    simulate = ("cargo", "run", "--quiet", "--release", "--locked", "-p", "loom-sim", "--")
    yield Stage("simulated seeds", (*simulate, "--seeds", seeds), 2_400)
    yield Stage("simulated sessions", (*simulate, "sessions", "--seeds", seeds), 2_400)
    coverage = ("-m", f"{EVERYDAY} and not e2e", "-n", "2", "--cov", "--ignore", "tests/benchmarks")
    yield Stage("coverage of the Python tests", (*PYTEST, *coverage), 1_800)


def prove_log() -> Iterator[Stage]:
    """The log's own proof, piece by piece, and the page that tells of it."""
    for piece in prove_the_log.PIECES:
        yield Stage(piece, (PYTHON, "tools/prove_log.py", piece), 3_600)
    yield Stage("docs/reliability.md", (PYTHON, "tools/prove_log.py", "page"))


def prove_bridge() -> Iterator[Stage]:
    """The proof of the Bridge under faults, piece by piece, and the page that tells of it."""
    for piece in prove_the_bridge.PIECES:
        yield Stage(piece, (PYTHON, "tools/prove_bridge.py", piece), 3_600)
    yield Stage("docs/reliability.md", (PYTHON, "tools/prove_bridge.py", "page"))


def run(stage: Stage) -> str | None:
    """Run one stage in a process group of its own; say what went wrong, or nothing."""
    process = subprocess.Popen(
        stage.command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        code = process.wait(stage.seconds)
        return None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        return f"not done after {stage.seconds} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave through the ``finally`` of the stage that runs."""
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Run the stages of the named set and print what each took."""
    sets = {
        "test": lambda: iter(TEST),
        "lint": lambda: iter(LINT),
        "prove": prove,
        "prove-log": prove_log,
        "prove-bridge": prove_bridge,
    }
    if len(arguments) != 1 or arguments[0] not in sets:
        print(f"usage: stages.py {'|'.join(sets)}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    results: list[tuple[str, float, str | None]] = []
    for stage in sets[arguments[0]]():
        print(f"── {stage.name}", flush=True)
        start = time.monotonic()
        problem = run(stage)
        results.append((stage.name, time.monotonic() - start, problem))
        print(f"   {stage.name}: {problem or 'ok'}, {results[-1][1]:.1f} s", flush=True)
    print("── summary")
    for name, seconds, problem in results:
        print(f"{seconds:8.1f} s  {name}{f': FAILED, {problem}' if problem else ''}")
    print(f"{time.monotonic() - begin:8.1f} s  in all")
    return 1 if any(problem for _, _, problem in results) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main(sys.argv[1:]))
