"""The documents: their links lead somewhere, their code runs, their commands work.

A Python block runs as it stands, in one process with those before it in the same document; one that
is titled with a file name is written to that file first, for the commands after it to use. A block
marked ``no-run`` is only compiled. Commands run where those files and ``examples/`` are.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.project.documents import Block, anchors, blocks, commands, links, resolve
from tests.project.repo import ROOT, files, shown, spec, text

DOCUMENTS = [path for path in files(".md") if path.parent.name != "requirements"]
BIN = Path(sys.executable).parent
SHELLS = {"sh", "bash", "console", "shell"}
# What other tests prove, or what only moves about: never run from here.
ELSEWHERE = re.compile(
    r"(cd|git clone|pre-commit install|export|source|cat|ls"
    r"|python3? -m venv|(\S*/)?(uv )?pip install|npm install|\.ci/run|cargo (run|test|clippy))\b"
)
INTERRUPTED = "Ctrl-C"
RUNNER = """
import ast, asyncio, inspect, sys
names = {"__name__": "docs"}
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        code = compile(file.read(), path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    value = eval(code, names)
    if inspect.iscoroutine(value):
        asyncio.run(value)
"""


def with_blocks(*languages: str) -> list[Path]:
    return [p for p in DOCUMENTS if any(b.language in languages for b in blocks(text(p)))]


def environment(home: Path) -> dict[str, str]:
    """No keys, a home of its own, and our commands first in the path."""
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}


def is_dead(document: Path, target: str) -> bool:
    if re.match(r"(https|mailto):", target):
        return False
    path, fragment = resolve(document, target)
    if not path.exists() or ROOT not in (path, *path.parents):
        return True
    return bool(fragment) and path.suffix == ".md" and fragment not in anchors(text(path))


def write_files(document: Path, folder: Path) -> None:
    """Write the blocks that stand for files, and bring the examples."""
    (folder / "examples").symlink_to(ROOT / "examples")
    for block in blocks(text(document)):
        if block.title is not None and not block.title.startswith("examples/"):
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, encoding="utf-8")


@pytest.mark.requirement("DOCS-ALIVE")
@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_links_lead_somewhere(document: Path) -> None:
    assert [target for target in links(text(document)) if is_dead(document, target)] == []


@pytest.mark.requirement("DOCS-ALIVE")
@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_blocks_name_their_language_and_data_is_valid(document: Path) -> None:
    for block in blocks(text(document)):
        assert block.language, f"{shown(document)}:{block.line}: the block has no language"
        if block.language == "json":
            json.loads(block.body)
        elif block.language == "toml":
            tomllib.loads(block.body)
        elif block.language == "python":
            compile(block.body, shown(document), "exec", flags=0x2000, dont_inherit=True)


@pytest.mark.requirement("DOCS-ALIVE")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("document", with_blocks("python"), ids=shown)
def test_python_blocks_run(document: Path, tmp_path: Path) -> None:
    write_files(document, tmp_path)
    paths: list[str] = []
    for block in blocks(text(document)):
        if block.language == "python" and "no-run" not in block.words:
            path = tmp_path / f"line_{block.line}.py"
            path.write_text(block.body, encoding="utf-8")
            paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *paths],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run_command(command: str, block: Block, folder: Path) -> None:
    """Run one command of a document to its end; one that is ended with Ctrl-C gets it."""
    process = subprocess.Popen(
        shlex.split(command),
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        if INTERRUPTED in block.body:
            assert process.stdout is not None
            process.stdout.readline()
            os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        ended = {0, 130} if INTERRUPTED in block.body else {0}
        assert process.returncode in ended, f"{command}\n{output[-3000:]}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.requirement("DOCS-ALIVE")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", with_blocks(*SHELLS), ids=shown)
def test_commands_work(document: Path, tmp_path: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text(ROOT / "Makefile"), re.MULTILINE))
    write_files(document, tmp_path)
    for block in blocks(text(document)):
        if block.language not in SHELLS or "no-run" in block.words:
            continue
        for command in commands(block):
            words = shlex.split(command)
            if words[0] == "make":
                named = {word for word in words[1:] if "=" not in word}
                assert named <= targets, f"{shown(document)}:{block.line}: {command}"
            elif words[0] in {"loom", "loomos", "python", "python3"} and not ELSEWHERE.match(
                command
            ):
                run_command(command, block, tmp_path)
            else:
                assert ELSEWHERE.match(command), (
                    f"{shown(document)}:{block.line}: no test runs: {command}"
                )


@pytest.mark.requirement("DOCS-ALIVE")
def test_every_error_limit_and_configuration_key_is_documented() -> None:
    config = {table: keys for table, keys in spec("config.toml").items() if table != "environment"}
    wanted = {
        "errors.md": {error["name"] for error in spec("errors.toml")["error"]},
        "limits.md": set(spec("limits.toml")),
        "configuration.md": {
            *(f"LOOM_{table}__{key}".upper() for table, keys in config.items() for key in keys),
            *spec("config.toml")["environment"],
        },
    }
    missing = {
        page: sorted(n for n in names if not re.search(rf"\b{n}\b", text(ROOT / "docs" / page)))
        for page, names in wanted.items()
    }
    assert {page: names for page, names in missing.items() if names} == {}


@pytest.mark.requirement("GENERATED")
def test_the_documents_give_each_limit_as_it_is() -> None:
    page = text(ROOT / "docs" / "limits.md").replace(",", "").replace("_", "")
    wrong = [
        name
        for name, limit in spec("limits.toml").items()
        if not re.search(rf"`{name.replace('_', '')}`[^\n]*\b{limit['default']}\b", page)
    ]
    assert wrong == []
