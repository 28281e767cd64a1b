"""What holds for every test: how many examples Hypothesis tries, and the law of conservation.

And the one suite for all links: a test that carries a requirement of ``spec/links.toml`` runs on
each link that this names for Python.
"""

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from loom.link import Link, Local
from tests.links.elsewhere import Way
from tests.links.table import links_of

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    links = links_of(metafunc.definition)
    if links:
        metafunc.parametrize("_way", links, indirect=True)


@pytest.fixture(autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Way | None]:
    """Let the apps of a test run on the link that it is run for, without its knowing."""
    link = getattr(request, "param", None)
    if link in (None, "process"):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="loom-") as folder:
        way = Way(link, Path(folder))
        monkeypatch.setattr("loom.runtime.running.open_remote", way.open)
        monkeypatch.setattr("loom.runtime.running.running", way.running)
        monkeypatch.setattr("loom.testing.harness.running", way.running)
        yield way
    assert way.uses, f"this test runs no app: it cannot tell anything of {link}"
    assert not way.unbalanced
