"""Write the lock files anew: all with hashes, and no host named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
NODE_LOCK = ROOT / "package-lock.json"
COMMON = (
    *("--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"),
    *("--no-emit-index-url", "--no-header", "--no-annotate"),
)
LOCKS = {
    "requirements/runtime.txt": ("pyproject.toml",),
    "requirements/dev.txt": ("pyproject.toml", "--all-extras", "requirements/dev.in"),
    "requirements/bench.txt": ("requirements/bench.in",),
}


def python() -> None:
    """Run uv once for each lock file; versions that are locked stay unless they no longer fit."""
    for path, options in LOCKS.items():
        command = [UV, "pip", "compile", *COMMON, *options, "--output-file", path]
        subprocess.run(command, cwd=ROOT, check=True)


def node() -> None:
    """Let npm write its lock, and take out where packages came from and who pays for them."""
    subprocess.run(["npm", "install", "--package-lock-only", "--silent"], cwd=ROOT, check=True)
    lock: dict[str, Any] = json.loads(NODE_LOCK.read_text(encoding="utf-8"))
    for package in lock["packages"].values():
        package.pop("funding", None)
        package.pop("deprecated", None)
        if not package.get("link"):  # a workspace is a path, not a place
            package.pop("resolved", None)
    NODE_LOCK.write_text(json.dumps(lock, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write all of them, or with ``node`` only the one of npm."""
    if "node" not in arguments:
        python()
    node()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
