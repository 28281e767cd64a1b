"""What the tests of the project itself share: the files of the repository, and how to read them."""

import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOOM = ROOT / "python" / "loom"


@cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """The files of the repository that end so, tracked or about to be; not what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (ROOT / name for name in sorted(listed.split("\0")) if name)
    return tuple(p for p in paths if p.is_file() and (not suffixes or p.name.endswith(suffixes)))


@cache
def text(path: Path) -> str:
    """The file's text, read once."""
    return path.read_text(encoding="utf-8")


@cache
def spec(name: str) -> dict[str, Any]:
    """One file of ``spec/``."""
    return tomllib.loads(text(ROOT / "spec" / name))


def shown(path: Path) -> str:
    """The path as a person would name it."""
    return path.relative_to(ROOT).as_posix()
