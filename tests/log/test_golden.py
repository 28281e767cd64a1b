"""The golden log: what an earlier version has written, later ones read and replay the same."""

import hashlib
import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import loom
from loom.codec import encode
from loom.errors import NotSupported

_HERE = Path(__file__).parent / "golden"
_TOP = _HERE.parent.parent.parent
# what the states of v1 hash to, and the hashes of all its runs, each run again
_STATES = "ef322d17283890a2a96adff9885b45cf224e2c076823b48dd6d57705a2a9cb89"
_RERUN = "727812ecc95b79a324dc275e7be742659d345600040681bd2918d0d63b8b6c07"


def golden_app() -> loom.App:
    spec = importlib.util.spec_from_file_location("golden_app", _HERE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def unpacked(folder: Path) -> Path:
    with tarfile.open(_HERE / "v1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "log"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.requirement("REPLAY-GOLDEN")
async def test_the_golden_log_folds_and_replays_to_what_it_always_did(tmp_path: Path) -> None:
    log = loom.open_log(unpacked(tmp_path))
    states = [[*key, state] for key, state in sorted(log.states().items())]
    assert sha(encode(states).decode()) == _STATES
    assert log.state_hash() == log.state_hash(anew=True)
    runs = log.runs()
    assert len(runs) == 10
    hashes: list[str] = []
    for run in runs:
        assert run.whole, run
        again = await log.replay(run.id, agents=golden_app())
        assert not again.diverged, again.turns
        hashes.append(again.state)
    assert sha(" ".join(hashes)) == _RERUN


@pytest.mark.requirement("REPLAY-GOLDEN")
async def test_the_golden_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    data = unpacked(tmp_path)
    before = len(loom.open_log(data).runs())
    async with golden_app().running(data=data) as ctx:
        await ctx.emit("order.kept", {"life": 3}, ack="disk")
    assert len(loom.open_log(data).runs()) == before + 1


@pytest.mark.requirement("REPLAY-GOLDEN", "LOG-VERSION")
def test_a_log_of_a_newer_format_is_refused_with_its_version(tmp_path: Path) -> None:
    data = unpacked(tmp_path)
    text = (data / "format").read_text(encoding="ascii")
    (data / "format").write_text(text.replace("1", "99"), encoding="ascii")
    with pytest.raises(NotSupported, match="99"):
        loom.open_log(data)


def run_loom(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loom", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.requirement("REPLAY-CLI", "WHY-CHAIN")
async def test_the_command_line_shows_a_run_reruns_it_and_says_why(tmp_path: Path) -> None:
    data = unpacked(tmp_path)
    log = loom.open_log(data)
    run = log.runs()[0].id
    place = ("--data", str(data))
    shown = run_loom("replay", run, *place)
    assert shown.returncode == 0, shown.stderr
    assert "order.placed" in shown.stdout
    assert "calls price" in shown.stdout
    app = ("--agents", "--app", f"{_HERE / 'app.py'}:app")
    again = run_loom("replay", run[-12:], *place, *app)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "does the same" in again.stdout
    other = tmp_path / "other.py"
    source = (_HERE / "app.py").read_text(encoding="utf-8")
    other.write_text(source.replace('"order.taken"', '"order.lost"'), encoding="utf-8")
    changed = run_loom("replay", run, *place, "--agents", "--app", f"{other}:app")
    assert changed.returncode == 1
    assert "DIVERGED" in changed.stdout
    taken = next(m for m in log.events() if m.name == "order.taken")
    why = run_loom("why", str(taken.id), *place)
    assert why.returncode == 0
    assert "order.placed" in why.stdout
    assert "call price" in why.stdout
    between = run_loom("replay", "--from", "0", "--until", "30", "--json", *place)
    assert between.returncode == 0
    assert between.stdout.count("\n") > 5
    wrong = run_loom("replay", "--from", "whenever", *place)
    assert wrong.returncode == 2 or wrong.returncode == 1
    assert "neither a position nor a time" in wrong.stderr
    missing = run_loom("why", "01a2ffff", *place)
    assert missing.returncode == 4
    assert "NOT_FOUND" in missing.stderr
