"""The suite that is one for all links: what each requirement names, and that it is proven there."""

import re
import subprocess
import sys
from collections import defaultdict
from functools import cache

import pytest

from tests.links.table import table
from tests.project.repo import ROOT, files, spec, text

IN_TYPESCRIPT = re.compile(
    r"//\s*requirements?:\s*([A-Z0-9-]+(?:\s*,\s*[A-Z0-9-]+)*)((?:\s*@\w+)+)"
)
KNOWN = {name for named in spec("requirements.toml").values() for name in named}


@cache
def of_python() -> dict[str, set[str]]:
    """Ask pytest which tests it would run: their ids, with the links they run on."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.links.collected"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: defaultdict[str, set[str]] = defaultdict(set)
    for line in told.stdout.splitlines():
        name, link = line.split()
        found[name].add(link)
    return found


@cache
def of_javascript() -> dict[str, set[str]]:
    """Read it from the comments above tests: ``// requirement: ID @websocket @unix``."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in files(".ts"):
        for ids, links in IN_TYPESCRIPT.findall(text(path)):
            for name in ids.split(","):
                found[name.strip()].update(re.findall(r"@(\w+)", links))
    return found


PROVEN = {"python": of_python, "javascript": of_javascript}


@pytest.mark.requirement("LINKS-SAME")
def test_what_is_to_hold_on_links_is_a_requirement() -> None:
    for language, own in table().items():
        assert language in PROVEN
        assert sorted(set(own["requirements"]) - KNOWN) == []
        assert len(own["requirements"]) == len(set(own["requirements"]))


@pytest.mark.requirement("LINKS-SAME")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("language", table())
def test_each_requirement_is_proven_on_each_link_that_it_names(language: str) -> None:
    own, proven = table()[language], PROVEN[language]()
    missing = {
        name: links
        for name in own["requirements"]
        if (links := sorted(set(own["links"]) - proven.get(name, set())))
    }
    assert missing == {}
