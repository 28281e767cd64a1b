import ast
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loom
import loom.errors
from tests.project.repo import LOOM, ROOT, files, shown, spec, text

# Below this a number is common enough to stand for something else.
DISTINCTIVE = 4_096
LOCKS = (
    "requirements/dev.txt",
    "requirements/runtime.txt",
    "requirements/bench.txt",
    "package-lock.json",
)
PLACES = re.compile(
    r"(?<![\w.])/(?:root|home|work|Users|opt|mnt)/\w"
    r"|\bfiles\.pythonhosted\b|\bpypi\.org/simple\b|\bregistry\.npmjs\b|\bindex\.crates\b"
)


def limits() -> dict[int, str]:
    found: dict[int, str] = {}
    for name, limit in spec("limits.toml").items():
        for value in (limit["default"], limit["maximum"]):
            # A power of ten is how many of one unit make another, wherever it stands.
            if value >= DISTINCTIVE and str(value).rstrip("0") != "1":
                found.setdefault(value, name)
    return found


def numbers_of_python(path: Path) -> set[int]:
    nodes = ast.walk(ast.parse(text(path)))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is int}


def numbers_of_rust(path: Path) -> set[int]:
    code = text(path).split("#[cfg(test)]", 1)[0]
    code = re.sub(r'//[^\n]*|"(?:\\.|[^"\\])*"', "", code)
    literals = re.findall(r"(?<![\w.])\d[\d_]*(?![\w.])", code)
    return {int(literal.replace("_", "")) for literal in literals}


@pytest.mark.requirement("GENERATED")
def test_numbers_of_limits_are_written_in_the_specification_only() -> None:
    named = limits()
    python = [p for p in LOOM.rglob("*.py") if p.name != "limits.py"]
    rust = [
        p
        for p in (ROOT / "crates").glob("*/src/**/*.rs")
        # The simulator has a disk of its own, with pages of its own.
        if not {"gen", "tests", "loom-sim"} & set(p.parts) and p.name != "tests.rs"
    ]
    repeated = [
        f"{shown(path)}: {value} is limits.{named[value]}"
        for paths, numbers in ((python, numbers_of_python), (rust, numbers_of_rust))
        for path in sorted(paths)
        for value in sorted(numbers(path) & set(named))
    ]
    assert repeated == []


@pytest.mark.requirement("BOUNDED")
def test_every_limit_bounds_something() -> None:
    code = "\n".join(
        text(path)
        for path in files(".py", ".rs", ".ts")
        if not {"tests", "gen"} & set(path.parts) and path.name != "limits.py"
    )
    unused = [n for n in spec("limits.toml") if not re.search(rf"\b{n.upper()}(_MAX)?\b", code)]
    assert unused == []


@pytest.mark.requirement("ERRORS-CLOSED")
def test_every_code_that_is_named_in_a_call_is_one_of_the_closed_set() -> None:
    unknown: list[str] = []
    for path in sorted(LOOM.rglob("*.py")):
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                value: Any = node.value.value if isinstance(node.value, ast.Constant) else None
                if isinstance(value, str) and value not in loom.errors.CODES:
                    unknown.append(f"{shown(path)}: {value}")
    assert unknown == []


@pytest.mark.requirement("LOCKED")
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_names_no_host_and_pins_every_hash(name: str) -> None:
    lock = text(ROOT / name)
    assert "://" not in lock
    assert re.findall(r'"resolved": "(?!js/)', lock) == []  # a workspace is a path of its own
    if name.endswith(".txt"):
        pinned = len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE))
        hashed = len(re.findall(r"==[^\n]*\\\n\s+--hash=sha256:", lock))
        assert pinned == hashed > 0


@pytest.mark.requirement("LOCKED")
def test_the_lock_of_cargo_takes_everything_from_the_public_registry() -> None:
    packages = tomllib.loads(text(ROOT / "Cargo.lock"))["package"]
    sources = {package.get("source") for package in packages}
    assert sources <= {None, "registry+https://github.com/rust-lang/crates.io-index"}


@pytest.mark.requirement("LOCKED")
def test_nothing_in_the_repository_names_a_machine() -> None:
    found: list[str] = []
    for path in files():
        if path.name in {"test_tidy.py", "LICENSE"} or path.suffix in {".png", ".gz", ".bin"}:
            continue
        if path.is_relative_to(ROOT / "fuzz" / "corpus"):  # bytes that nobody wrote
            continue
        for number, line in enumerate(text(path).splitlines(), 1):
            if PLACES.search(line):
                found.append(f"{shown(path)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_one_version_is_written_everywhere() -> None:
    python = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["version"]
    rust = tomllib.loads(text(ROOT / "Cargo.toml"))["workspace"]["package"]["version"]
    assert rust.replace("-alpha.", "a") == python
    assert loom.__version__ == python
    for manifest in sorted((ROOT / "js").glob("*/package.json")):
        assert json.loads(text(manifest))["version"] == rust, shown(manifest)


def test_every_crate_takes_its_settings_from_the_workspace() -> None:
    for manifest in sorted((ROOT / "crates").glob("*/Cargo.toml")):
        crate = tomllib.loads(text(manifest))
        assert crate["lints"] == {"workspace": True}, shown(manifest)
        for key in ("version", "edition", "license"):
            assert crate["package"][key] == {"workspace": True}, shown(manifest)


def test_no_library_code_prints_or_silences_a_warning_without_saying_why() -> None:
    bare = re.compile(r"#\s*(?:noqa(?!:)|type:\s*ignore(?!\[)|pyright:\s*ignore(?!\[))")
    found = [
        f"{shown(path)}:{number}"
        for path in files(".py")
        if path.name != "test_tidy.py"
        for number, line in enumerate(text(path).splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []


def test_rust_expects_lints_with_a_reason_and_never_allows_them() -> None:
    found = [
        f"{shown(path)}: {attribute}"
        for path in files(".rs")
        for attribute in re.findall(r"#!?\[allow\([^\]]*\)\]", text(path))
    ]
    assert found == []


@pytest.mark.requirement("ERRORS-CLOSED")
def test_every_code_that_can_come_up_comes_up_in_a_test() -> None:
    def joined(wanted: Callable[[Path], bool]) -> str:
        return "\n".join(text(path).split("#[cfg(test)]", 1)[0] for path in files() if wanted(path))

    python = joined(lambda p: p.suffix == ".py" and LOOM in p.parents and p.name != "errors.py")
    rust = joined(lambda p: p.suffix == ".rs" and "src" in p.parts and p.name != "codes.rs")
    tests = joined(lambda p: p.suffix in {".py", ".rs"} and "tests" in p.parts)
    untested: list[str] = []
    for error in spec("errors.toml")["error"]:
        name, cls = error["name"], error["class"]
        variant = "".join(word.capitalize() for word in name.split("_"))
        used = re.search(rf"\b{cls}\(", python) or re.search(rf"\bCode::{variant}\b", rust)
        if used and not re.search(rf"\b(?:{name}|{cls}|Code::{variant})\b", tests):
            untested.append(name)
    assert untested == []
