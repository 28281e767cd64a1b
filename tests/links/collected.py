"""Prints a line for each requirement and link that a test would run for: ``ID LINK``."""

import contextlib
import io
import sys
from typing import Any

import pytest


class _Lines:
    def __init__(self) -> None:
        self.found: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Take what was collected."""
        for item in items:
            spec: Any = getattr(item, "callspec", None)
            if spec is not None and (link := spec.params.get("_way")) is not None:
                ids = (one for mark in item.iter_markers("requirement") for one in mark.args)
                self.found.update(f"{one} {link}" for one in ids)


if __name__ == "__main__":
    lines = _Lines()
    with contextlib.redirect_stdout(io.StringIO()):
        words = ["--collect-only", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "tests"]
        code = pytest.main(words, plugins=[lines])
    print("\n".join(sorted(lines.found)))
    sys.exit(int(code))
