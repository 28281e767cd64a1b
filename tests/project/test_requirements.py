import ast
import re

import pytest

from tests.project.repo import ROOT, files, spec, text

IDS = {name: area for area, named in spec("requirements.toml").items() for name in named}
IN_COMMENTS = re.compile(r"//\s*requirements?:\s*([A-Z0-9-]+(?:\s*,\s*[A-Z0-9-]+)*)")


def marks_of_python(source: str) -> set[str]:
    """The ids that marks in this file name; a mark may name several."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "requirement":
            values = (a.value for a in node.args if isinstance(a, ast.Constant))
            found.update(value for value in values if isinstance(value, str))
    return found


def proven() -> dict[str, str]:
    """Each id that a test names, with the file of one such test."""
    found: dict[str, str] = {}
    for path in files(".py", ".rs", ".ts"):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in {".rs", ".ts"}:
            ids = {i.strip() for group in IN_COMMENTS.findall(text(path)) for i in group.split(",")}
        elif name.startswith("tests/"):
            ids = marks_of_python(text(path))
        else:
            continue
        found.update(dict.fromkeys(ids, name))
    return found


def test_every_id_reads_as_one_and_stands_once() -> None:
    every = [name for named in spec("requirements.toml").values() for name in named]
    assert len(every) == len(set(every))
    assert [name for name in every if not re.fullmatch(r"[A-Z]+(-[A-Z]+)*", name)] == []


def test_every_requirement_is_proven_by_a_test() -> None:
    missing = sorted(set(IDS) - set(proven()))
    assert missing == []


def test_no_test_names_a_requirement_that_does_not_exist() -> None:
    named = proven()
    assert {name: named[name] for name in named if name not in IDS} == {}


@pytest.mark.parametrize("name", IDS)
def test_every_requirement_is_a_sentence(name: str) -> None:
    sentence = spec("requirements.toml")[IDS[name]][name]
    assert sentence.endswith(".")
    assert len(sentence) > len(name)
