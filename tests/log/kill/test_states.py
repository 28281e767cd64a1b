"""What a power cut may leave of the files of a log: every part of what is not certain."""

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.log.kill import campaign
from tests.log.kill.disk import LeftOut
from tests.log.kill.harness import STRACE, BrokenPromiseError, Load
from tests.log.kill.states import MEMORY, Chain, Checker, Life, trace

SEED = 1
STATES = 2_500

pytestmark = [
    pytest.mark.skipif(STRACE is None, reason="no strace that may trace; make test-deps brings it"),
    pytest.mark.timeout(120),
]

# What is left of the promise without a sync: of these calls, at paths that end so.
LEFT_OUT: Final[Mapping[str, LeftOut]] = {
    "of the data directory": lambda call, path: call == "fsync" and path.endswith("data"),
    "of what is above it": lambda call, path: call == "fsync" and path in {"", "deep"},
    "of a namespace": lambda call, path: call == "fsync" and path.endswith("/victim"),
    "of the names of segments": lambda call, path: call == "fsync" and path.endswith("/log"),
    "of a commit": lambda call, path: call == "fdatasync" and "/log/" in path,
    "of the pieces of large bodies": lambda _call, path: "/blobs/" in path,
    "of the names of pieces": lambda _call, path: path.endswith("/blobs"),
    "of a snapshot": lambda _call, path: path.endswith(".snap.new"),
    "of the names of snapshots": lambda _call, path: path.endswith("/snapshots"),
    "of the files of a backup": lambda _call, path: ".partial/" in path,
    "of the directories of a backup": lambda _call, path: path.endswith(".partial/victim"),
}


def follow(left_out: LeftOut | None, place: str, backup_every: int = 0) -> int:
    load = Load(
        seed=5,
        batches=60,
        in_flight=4,
        snapshot_every=20,
        keep_segments=1,
        backup_every=backup_every,
    )
    dice = random.Random(1)
    with Checker(load, Path(place)) as checker:
        chain = Chain(load, Path(place), left_out)
        chain.live(Life(data="deep/data"), 150, checker, dice)
        return chain.states


@pytest.mark.requirement("CRASH-STATES")
def test_what_was_acked_is_in_every_state_that_a_power_cut_may_leave() -> None:
    seen = campaign.run("states", SEED, STATES)
    assert seen.failures == []
    assert seen.states >= STATES
    assert seen.acked > 0


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_sync_that_is_left_out_is_found(what: str) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place, pytest.raises(BrokenPromiseError):
        follow(LEFT_OUT[what], place, 30 if what.endswith("backup") else 0)


@pytest.mark.requirement("BACKUP-WHOLE")
def test_a_backup_whose_name_could_not_be_synced_is_whole_or_not_there() -> None:
    load = Load(seed=3, batches=4, in_flight=1, backup_every=4)
    dice = random.Random(1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as place, Checker(load, Path(place)) as checker:
        (Path(place) / "first").mkdir()
        steps = trace(Life(data="data"), load, Path(place) / "first")
        syncs = sum(step.begins and step.call.name == "fsync" for step in steps)
        last = f"fsync:error=EIO:when={syncs}"  # one thread makes them all
        chain = Chain(load, Path(place))
        chain.live(Life(data="data", injection=last), 400, checker, dice)
        assert chain.states > 100
        assert not chain.told.backups


def test_a_log_that_makes_all_its_syncs_passes() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        assert follow(None, place, 30) > 100
