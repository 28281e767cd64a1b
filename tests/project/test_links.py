"""The suite that is one for all links: what each requirement names, and that it is proven there."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest

from tests.links.table import groups, table
from tests.project.repo import ROOT, spec, text

ABOVE = re.compile(r"//\s*requirements?:\s*([A-Z0-9-]+(?:\s*,\s*[A-Z0-9-]+)*)")
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
    """Ask vitest the same: ids stand in the lines above a test, its project is its link."""
    words = ("list", "--root", "js/sdk", "--json", "--includeTaskLocation")
    told = subprocess.run(
        [ROOT / "node_modules" / ".bin" / "vitest", *words, "tests/links/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    found: defaultdict[str, set[str]] = defaultdict(set)
    for test in json.loads(told.stdout):
        lines = text(Path(test["file"])).splitlines()[: test["location"]["line"] - 1]
        above = takewhile(lambda line: line.strip().startswith("//"), reversed(lines))
        for ids in filter(None, map(ABOVE.search, above)):
            for name in ids[1].split(","):
                found[name.strip()].add(test["projectName"])
    return found


PROVEN = {"python": of_python, "javascript": of_javascript}


@pytest.mark.requirement("LINKS-SAME")
@pytest.mark.parametrize("language", table())
def test_what_is_to_hold_on_links_is_a_requirement_and_stands_once(language: str) -> None:
    assert language in PROVEN
    named = [name for group in groups(language) for name in group["requirements"]]
    assert sorted(set(named) - KNOWN) == []
    assert len(named) == len(set(named))


@pytest.mark.requirement("LINKS-SAME")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("language", table())
def test_each_requirement_is_proven_on_each_link_that_it_names(language: str) -> None:
    proven = PROVEN[language]()
    missing = {
        name: links
        for group in groups(language)
        for name in group["requirements"]
        if (links := sorted(set(group["links"]) - proven.get(name, set())))
    }
    assert missing == {}


@pytest.mark.requirement("LINKS-SAME")
@pytest.mark.timeout(120)
def test_what_the_tests_of_javascript_prove_over_links_is_named() -> None:
    named = {name for group in groups("javascript") for name in group["requirements"]}
    assert sorted(set(of_javascript()) - named) == []
