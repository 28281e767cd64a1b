"""The wheel, as a stranger gets it: built, installed where there is no compiler, and run."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.project.repo import ROOT, text

MOST_DISTRIBUTIONS = 30
QUESTION = "What is an asyncio queue in Python?"
COUNT = """
from importlib.metadata import distributions
print(*sorted({d.name.lower() for d in distributions()} - {"pip", "setuptools"}))
"""

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def run(*command: str, cwd: Path, env: dict[str, str] | None = None, seconds: int = 400) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the source distribution, and the wheel out of it."""
    out = tmp_path_factory.mktemp("dist")
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    maturin = str(Path(sys.executable).with_name("maturin"))
    run(
        *(maturin, "build", "--sdist", "--release", "--out", str(out)),
        cwd=ROOT,
        env={**os.environ, "CARGO_TARGET_DIR": target},
    )
    return out


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.mark.requirement("WHEEL-INSTALLS")
def test_the_source_distribution_is_complete(dist: Path) -> None:
    with tarfile.open(only(dist, "loomos-*.tar.gz")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "crates/loom-core/src/lib.rs",
        "crates/loom-python/Cargo.toml",
        "pyproject.toml",
        "python/loom/__init__.py",
        "python/loom/py.typed",
    } <= names


@pytest.mark.requirement("WHEEL-INSTALLS")
def test_the_wheel_serves_every_python_from_the_oldest_supported(dist: Path) -> None:
    wheel = only(dist, "loomos-*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"loom/_engine.abi3.so", "loom/_engine.pyi", "loom/py.typed"} <= names
    strays = {n for n in names if not n.startswith(("loom/", "loomos-")) or "__pycache__" in n}
    assert strays == set()


@pytest.mark.requirement("WHEEL-INSTALLS", "TRIO-ANSWERS")
def test_the_trio_runs_from_the_wheel_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(venv), cwd=tmp_path)
    wheel = only(dist, "loomos-*.whl")
    pins = [line for line in text(ROOT / "requirements/runtime.txt").splitlines() if "==" in line]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(pin.rstrip("\\ ") for pin in pins), encoding="utf-8")
    run(
        *(str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"),
        *("--constraint", str(constraints), str(wheel)),
        cwd=tmp_path,
        env={**os.environ, "PATH": str(venv / "bin")},
    )
    alone = {"PATH": str(venv / "bin"), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    installed = run(str(venv / "bin/python"), "-c", COUNT, cwd=tmp_path, env=alone).split()
    assert "loomos" in installed
    assert len(installed) <= MOST_DISTRIBUTIONS, installed

    app = tmp_path / "trio.py"
    app.write_text(text(ROOT / "examples/trio/app.py"), encoding="utf-8")
    answer = run("loom", "run", "trio.py", "--", QUESTION, cwd=tmp_path, env=alone, seconds=60)
    assert "asyncio" in answer
    assert "[1]" in answer
    version = run("loom", "--version", cwd=tmp_path, env=alone)
    assert version.strip().endswith(wheel.name.split("-")[1])
