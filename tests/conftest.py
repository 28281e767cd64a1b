"""What holds for every test: how many examples Hypothesis tries, and the law of conservation."""

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from loom.link import Link, Local

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=500, deadline=None)
settings.register_profile(
    "nightly", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("dev")


@pytest.fixture(autouse=True)
def _environment() -> Generator[None]:
    """See that a test leaves no variable behind for those that come after it in its process."""
    before = _variables()
    yield
    assert _variables() == before


def _variables() -> dict[str, str]:
    own = "PYTEST_CURRENT_TEST"
    return {name: value for name, value in os.environ.items() if name != own}


@pytest.fixture(autouse=True)
def _law(_environment: None, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Check the books of every engine that a test's apps ran on.

    While its registrations are there, matched = delivered + leased + queued + expired + dropped for
    each of them, with what is queued counted by walking the queues; when they are gone, nothing is
    left.
    """
    engines: list[Local] = []
    unbalanced: list[object] = []
    attach = Local.attach

    def attached(engine: Local, namespace: str, name: str, *, is_node: bool = False) -> Link:
        link = attach(engine, namespace, name, is_node=is_node)
        close = link.close

        def close_checked() -> None:
            audit = engine.audit()
            if not audit["balanced"]:
                unbalanced.append(audit)
            close()

        monkeypatch.setattr(link, "close", close_checked)
        engines.append(engine)
        return link

    monkeypatch.setattr(Local, "attach", attached)
    yield
    assert not unbalanced
    for engine in engines:
        audit = engine.audit()
        assert audit["balanced"], audit
        assert not any(audit["gauges"].values()), audit["gauges"]
