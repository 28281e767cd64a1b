"""Feed the wire with bytes that nobody wrote: ``fuzz.py SECONDS`` for each target.

What is found is written to ``fuzz/artifacts``; what brings the code somewhere new to
``target/fuzz/corpus``. Needs a nightly compiler and cargo-fuzz, and says so where they are missing.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SEEDS: Final[Mapping[str, Sequence[str]]] = {
    "decode": ("spec/vectors/frames",),
    "hub": ("fuzz/corpus/hub",),
    "port": ("fuzz/corpus/port",),
}
"""The targets, and the inputs each begins with."""


def missing() -> str | None:
    """Say what is missing, or nothing."""
    if shutil.which("cargo-fuzz") is None:
        return "cargo-fuzz is not installed: cargo install cargo-fuzz --locked"
    done = subprocess.run(("cargo", "+nightly", "--version"), capture_output=True, check=False)
    if done.returncode != 0:
        return "there is no nightly compiler: rustup toolchain install nightly"
    return None


def main(arguments: Sequence[str]) -> int:
    """Run each target so long; 1: one of them found something."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        print("usage: fuzz.py SECONDS", file=sys.stderr)
        return 2
    if (why := missing()) is not None:
        print(why, file=sys.stderr)
        return 1
    found = 0
    for target, seeds in SEEDS.items():
        corpus = ROOT / "target" / "fuzz" / "corpus" / target
        corpus.mkdir(parents=True, exist_ok=True)
        print(f"── {target}", flush=True)
        done = subprocess.run(
            (
                # Safe Rust: a sanitizer would only make it slower.
                *("cargo", "+nightly", "fuzz", "run", "--sanitizer", "none"),
                *("--target-dir", "target/fuzz", target, str(corpus), *seeds, "--"),
                *(f"-max_total_time={arguments[0]}", "-timeout=30", "-max_len=8192"),
                *("-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1"),
            ),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        found += done.returncode != 0
        print(f"   {target}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
