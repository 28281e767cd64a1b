"""The log of a process that is killed at an exact syscall, or whose disk fails."""

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.log.kill import campaign, power
from tests.log.kill.harness import (
    STRACE,
    BrokenPromiseError,
    History,
    Load,
    inspect,
    live,
    places,
)

SEED = 1
KILLS = 24
FAULTS = 8
SYNCS = 6
CUTS = 8
CLIENTS = 4

needs_strace = pytest.mark.skipif(
    STRACE is None, reason="no strace that may trace; make test-deps brings it"
)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def data() -> Generator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / "data"


def lived(data: Path, **more: int) -> History:
    load = Load(seed=7, batches=20, **more)  # pyright: ignore[reportArgumentType]
    history = History(load)
    life = live(load, data)
    assert life.code == 0, life.problem
    history.add(life)
    return history


@needs_strace
@pytest.mark.requirement("CRASH-KILL")
def test_what_was_acked_survives_a_kill_at_any_syscall() -> None:
    seen = campaign.run("kills", SEED, KILLS)
    assert seen.failures == []
    assert seen.kills >= KILLS
    assert seen.missed <= seen.kills
    assert seen.acked > 0


@needs_strace
@pytest.mark.requirement("CRASH-FAULT")
def test_nothing_is_acked_behind_a_call_that_failed() -> None:
    seen = campaign.run("faults", SEED, FAULTS)
    assert seen.failures == []
    assert seen.faults > 0


@needs_strace
@pytest.mark.requirement("CRASH-FAULT")
def test_nothing_is_acked_behind_a_sync_that_failed() -> None:
    seen = campaign.run("syncs", 1, SYNCS)
    assert seen.failures == []
    assert seen.faults == SYNCS


@needs_strace
@pytest.mark.requirement("CRASH-CLIENT")
def test_what_was_acked_to_an_app_is_handled_however_often_it_is_killed() -> None:
    seen = campaign.run("clients", SEED, CLIENTS)
    assert seen.failures == []
    assert seen.kills >= CLIENTS
    assert seen.acked > 0


@pytest.mark.requirement("CRASH-POWER")
def test_what_was_acked_from_the_disk_survives_a_power_cut() -> None:
    if (why := power.missing()) is not None:
        pytest.skip(why)
    seen = power.cut(SEED, CUTS)
    assert seen.failures == []
    assert seen.cuts == CUTS


@needs_strace
def test_a_victim_makes_the_calls_at_which_it_is_killed() -> None:
    calls = places(Load(seed=1, snapshot_every=10))
    assert {"pwrite64", "fdatasync", "write"} <= calls.keys()
    assert any(name.startswith("rename") for name in calls)
    assert calls["fdatasync"] > 3


def test_a_batch_that_is_acked_and_lost_is_found(data: Path) -> None:
    history = lived(data)
    history.acked[len(history.acked)] = 1_000_000
    with pytest.raises(BrokenPromiseError, match="acked and lost"):
        inspect(history, data)


def test_a_batch_at_another_position_is_found(data: Path) -> None:
    history = lived(data)
    history.acked[3] += 1
    with pytest.raises(BrokenPromiseError, match="another position"):
        inspect(history, data)


def test_a_log_of_another_victim_is_found(data: Path) -> None:
    history = lived(data)
    with pytest.raises(BrokenPromiseError):
        inspect(History(Load(seed=8)), data)
    assert history.acked


def test_a_byte_that_changed_is_found(data: Path) -> None:
    history = lived(data)
    segment = max(data.glob("victim/log/*.seg"), key=lambda path: path.name)
    content = bytearray(segment.read_bytes())
    header = 4_096
    place = (header + len(content.rstrip(b"\0"))) // 2
    content[place] ^= 1
    segment.write_bytes(bytes(content))
    with pytest.raises(BrokenPromiseError):
        inspect(history, data)
