"""``spec/links.toml``: which requirements hold on which links, and which tests run on which."""

import inspect
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TABLE = Path(__file__).resolve().parents[2] / "spec" / "links.toml"


@cache
def table() -> dict[str, dict[str, Any]]:
    """For each language its links and the requirements that hold on all of them."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def groups(language: str) -> list[dict[str, Any]]:
    """What holds for one language: its ``links`` and ``requirements``, and those that need more."""
    own = table()[language]
    return [own, *(more for more in own.values() if isinstance(more, dict))]


def links_of(test: pytest.Function) -> Sequence[str]:
    """The links that a test runs on; none: it is no test of what links have in common.

    A test that is no coroutine runs no app; one that is marked ``in_process`` looks at what only a
    process has.
    """
    is_alone = test.get_closest_marker("in_process") is not None
    if is_alone or not inspect.iscoroutinefunction(test.obj):
        return ()
    own = table()["python"]
    ids = {name for mark in test.iter_markers("requirement") for name in mark.args}
    return own["links"] if ids & set(own["requirements"]) else ()
