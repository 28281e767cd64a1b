"""make demo-js, as a person runs it: what it shows, what it survives, what it leaves behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.project.repo import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.js, pytest.mark.timeout(180)]

# The engine of the tests stands for the one for speed, and Node's packages are installed.
GIVEN = ("-o", ".venv/.stamps/engine-release", "-o", ".venv/.stamps/node")
QUESTION = "What is an asyncio queue in Python, and how was the weather in Seattle on 2015-06-01?"


class Demo:
    """``make demo-js`` in a session of its own, as in a terminal of its own."""

    def __init__(self, cache: Path, **variables: str) -> None:
        self.mark = f"LOOM_TEST_MARK={uuid.uuid4()}"
        name, value = self.mark.split("=")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "LOOM_"))}
        self.environment = {**kept, "XDG_CACHE_HOME": str(cache), name: value, **variables}
        self.said: list[str] = []
        self.process = subprocess.Popen(
            ["make", *GIVEN, f"PYTHON={sys.executable}", "demo-js", f"Q={QUESTION}"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, pattern: str) -> "re.Match[str]":
        """Read on until a line has this in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it never said {pattern}:\n{self.output}")

    def end(self) -> int:
        """Read all that it says, and return its exit code."""
        assert self.process.stdout is not None
        with self.process.stdout as rest:
            self.said.extend(rest)
        return self.process.wait()

    def close(self) -> None:
        """End what a test that failed has left."""
        if self.process.poll() is None:
            for pid in self.left():
                os.kill(pid, signal.SIGKILL)
            self.end()

    @property
    def output(self) -> str:
        return "".join(self.said)

    def left(self) -> dict[int, str]:
        """The processes that it started and that are still there, with their commands."""
        found: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                pass  # it has ended meanwhile, or is not ours
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Generator[Demo]:
    running = Demo(tmp_path / "cache")
    yield running
    running.close()


@pytest.mark.requirement("DEMO-JS")
def test_the_trio_answers_with_its_researcher_in_typescript_and_leaves_nothing(demo: Demo) -> None:
    assert demo.end() == 0, demo.output
    pids = dict(re.findall(r"^(\w+) +process (\d+)  ", demo.output, re.MULTILINE))
    assert pids.keys() == {"node", "writer", "researcher", "planner"}
    assert len(set(pids.values())) == len(pids)
    assert re.search(r"^researcher .*TypeScript", demo.output, re.MULTILINE)
    assert demo.output.count(".reply ← researcher") == 2
    assert "asyncio.Queue: A queue" in demo.output
    assert "temperatures between 11.7 and 16.1 °C" in demo.output
    assert "2 calls from TypeScript to Python (weather.get 1, web.search 1)" in demo.output
    assert demo.left() == {}


@pytest.mark.requirement("DEMO-JS")
def test_when_the_researcher_is_killed_it_says_so_and_the_question_is_answered(demo: Demo) -> None:
    first = demo.until(r"^researcher +process (\d+)")[1]
    demo.until(r"research\.search")  # the first search in a new cache takes seconds
    os.kill(int(first), signal.SIGKILL)
    demo.until(rf"^researcher +process {first} was killed by SIGKILL; it is started again")
    assert demo.until(r"^researcher +process (\d+)")[1] != first
    demo.until(r"the question was lost with that process: it is asked again")
    assert demo.end() == 0, demo.output
    assert "temperatures between 11.7 and 16.1 °C" in demo.output
    assert demo.left() == {}


@pytest.mark.requirement("DEMO-JS")
def test_ctrl_c_in_the_middle_ends_all_of_it(demo: Demo) -> None:
    demo.until(r"research\.search")
    os.killpg(demo.process.pid, signal.SIGINT)  # what a terminal does
    assert demo.end() != 0
    assert "Traceback" not in demo.output
    assert demo.left() == {}


@pytest.mark.requirement("DEMO-JS")
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for tool in ("bash", "cargo", "find", "make", "npm"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    demo = Demo(tmp_path, PATH=str(tmp_path))
    assert demo.end() != 0
    assert "missing: node\n" in demo.output
