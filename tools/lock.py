"""Write the lock files anew: all with hashes, and no host named."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
_MACHINE = re.compile(
    r"(?P<os>android|darwin|freebsd|linux|win32)-(?P<cpu>armv7|arm64|x64)(-(?P<libc>musl))?"
)
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
    lock["packages"] = dict(sorted({**_elsewhere(lock["packages"]), **lock["packages"]}.items()))
    NODE_LOCK.write_text(json.dumps(lock, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _elsewhere(packages: dict[str, Any]) -> dict[str, Any]:
    """Return what is optional and for other machines, where the lock does not name it.

    A registry may lack such packages: npm leaves them out then, and refuses to install from it.
    """
    found: dict[str, Any] = {}
    for package in packages.values():
        for name, version in package.get("optionalDependencies", {}).items():
            machine = _MACHINE.search(name.rpartition("/")[2])
            if machine is None or f"node_modules/{name}" in packages:
                continue
            entry: dict[str, Any] = {"version": version, "cpu": [machine["cpu"].rstrip("v7")]}
            entry |= {"dev": True, "optional": True, "os": [machine["os"]]}
            if machine["libc"]:
                entry["libc"] = [machine["libc"]]
            found[f"node_modules/{name}"] = entry
    return found


def main(arguments: list[str]) -> int:
    """Write all of them, or with ``node`` only the one of npm."""
    if "node" not in arguments:
        python()
    node()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
