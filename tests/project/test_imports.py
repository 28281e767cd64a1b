import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.repo import LOOM, ROOT, shown

HEAVY = (
    *("openai", "anthropic", "mcp", "fastmcp", "litellm", "httpx", "httpx2", "httpcore2", "anyio"),
    *("aiohttp", "requests", "starlette", "uvicorn", "websockets", "grpc", "numpy", "sqlite3"),
    *("loom.models.openai", "loom.testing", "loom.collab"),
)
OPENS_ENGINE = "link"


def modules_after(*arguments: str) -> set[str]:
    """The modules that a fresh interpreter holds when it has run so."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[-1].strip() for line in lines}


def imported(path: Path) -> set[str]:
    """Every module the file names in an import, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.requirement("IMPORT-DIRECTIONS")
@pytest.mark.timeout(120)
def test_the_rooms_of_the_house_import_downwards_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.requirement("IMPORT-DIRECTIONS")
def test_only_the_link_opens_the_engine() -> None:
    found = [
        shown(path)
        for path in sorted(LOOM.rglob("*.py"))
        if path.relative_to(LOOM).parts[0] != OPENS_ENGINE and "loom._engine" in imported(path)
    ]
    assert found == []


@pytest.mark.requirement("IMPORT-DIRECTIONS")
def test_the_vocabulary_does_no_io_and_knows_no_loop() -> None:
    forbidden = {"asyncio", "logging", "os", "socket", "subprocess", "threading"}
    vocabulary = ("envelope", "topics", "errors", "limits", "codec", "directory", "protocols")
    found = {
        name: sorted(imported(LOOM / f"{name}.py") & forbidden)
        for name in vocabulary
        if (LOOM / f"{name}.py").exists()
    }
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.requirement("IMPORT-LIGHT")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-c", "import loom; loom.App('x')"), id="import loom"),
        pytest.param(("-m", "loom.cli.main", "--help"), id="loom --help"),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_used(arguments: tuple[str, ...]) -> None:
    loaded = modules_after(*arguments)
    assert sorted(set(HEAVY) & loaded) == []


@pytest.mark.requirement("APP-NO-IO")
def test_an_app_is_made_without_the_engine_or_its_configuration() -> None:
    loaded = modules_after("-c", "import loom; loom.App('x')")
    assert "loom._engine" not in loaded
