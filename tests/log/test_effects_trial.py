"""Effects over kills: done exactly once where that can be known, else at most once and unknown."""

import pytest

from tests.log.effects_trial import CLASSES, GRID, POINTS, Count, run, trial
from tests.log.kill.harness import BrokenPromiseError

pytestmark = pytest.mark.timeout(240)


@pytest.mark.requirement("EFFECT-TRIAL", "EFFECT-CRASH", "EFFECT-ID")
def test_an_effect_is_done_once_or_is_unknown_wherever_the_app_is_killed() -> None:
    seen = run(len(GRID), seed=5)
    assert seen.failures == []
    assert seen.trials == len(GRID)
    assert set(seen.kills) == {f"{effect}, {point}" for effect in CLASSES for point in POINTS}
    assert set(seen.ends) == {*(f"{effect}, delivered" for effect in CLASSES), "unsafe, unknown"}


@pytest.mark.requirement("EFFECT-TRIAL")
def test_a_trial_sees_an_effect_that_was_done_twice() -> None:
    with pytest.raises(BrokenPromiseError, match="done 2 times"):
        trial("idempotent", ["after commit"], Count(), forgets=True)
