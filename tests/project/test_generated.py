import re
import subprocess
import sys
from typing import Any

import pytest

import loom.errors
import loom.limits
from tests.project.repo import ROOT, spec, text

ERRORS: list[dict[str, Any]] = spec("errors.toml")["error"]
LIMITS: dict[str, dict[str, Any]] = spec("limits.toml")


@pytest.mark.requirement("GENERATED")
@pytest.mark.parametrize("tool", ["gen.py", "gen_control.py"])
def test_generated_files_are_up_to_date(tool: str) -> None:
    command = [sys.executable, f"tools/{tool}", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.requirement("ERRORS-CLOSED")
def test_error_numbers_are_append_only_and_without_gaps() -> None:
    assert [error["number"] for error in ERRORS] == list(range(1, len(ERRORS) + 1))


@pytest.mark.requirement("ERRORS-CLOSED")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error["name"])
def test_every_code_has_one_class_and_maps_both_ways(error: dict[str, Any]) -> None:
    built = loom.errors.error_from_code(error["number"], "text", "field", "limit", "hint", "who")
    assert type(built).__name__ == error["class"]
    assert built.code == error["name"]
    assert loom.errors.CODES[built.code] == error["number"]
    assert built.retry is error["retry"]
    assert (built.message, built.field, built.limit) == ("text", "field", "limit")
    assert (built.hint, built.who) == ("hint", "who")


@pytest.mark.requirement("ERRORS-CLOSED")
def test_no_class_stands_beside_the_closed_set() -> None:
    classes = {cls.__name__ for cls in loom.errors.LoomError.__subclasses__()}
    assert classes == {error["class"] for error in ERRORS}


@pytest.mark.requirement("ERRORS-CLOSED")
def test_a_number_this_version_does_not_know_becomes_internal() -> None:
    unknown = loom.errors.error_from_code(len(ERRORS) + 1, "text")
    assert unknown.code == "INTERNAL"
    assert str(len(ERRORS) + 1) in unknown.message


@pytest.mark.requirement("ERRORS-CLOSED")
def test_a_deadline_is_also_a_timeout_of_python() -> None:
    with pytest.raises(TimeoutError):
        raise loom.errors.DeadlineExceeded("too late")


@pytest.mark.requirement("ERRORS-CLOSED")
def test_the_fallback_of_a_model_is_a_flag_and_no_error() -> None:
    assert "MODEL_FALLBACK" not in loom.errors.CODES


@pytest.mark.requirement("ERRORS-CLOSED")
def test_rust_knows_the_same_codes() -> None:
    source = text(ROOT / "crates/loom-core/src/gen/codes.rs")
    named = re.findall(r"(\d+) => Some\(Code::(\w+)\)", source)
    variants = dict(re.findall(r'Code::(\w+) => "([A-Z_]+)"', source))
    assert {variants[name]: int(number) for number, name in named} == loom.errors.CODES


@pytest.mark.requirement("GENERATED")
@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_has_a_unit_a_default_a_maximum_and_a_reason(name: str) -> None:
    limit = LIMITS[name]
    assert set(limit) == {"unit", "default", "maximum", "reason"}
    assert 0 < limit["default"] <= limit["maximum"]
    assert getattr(loom.limits, name.upper()) == limit["default"]
    assert loom.limits.LIMITS[name] == (
        limit["unit"],
        limit["default"],
        limit["maximum"],
        limit["reason"],
    )
