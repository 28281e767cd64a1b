"""Which model the environment chooses."""

import subprocess
import sys

import pytest

from loom.errors import InvalidParams, NotSupported, Unauthenticated
from loom.models import ExtractiveModel, from_environment, select
from loom.models.openai import DEFAULT_MODEL, OpenAIModel

KEY = {"OPENAI_API_KEY": "sk-test"}


@pytest.mark.requirement("MODEL-SWITCH")
def test_the_environment_alone_changes_the_model() -> None:
    assert isinstance(from_environment({}), ExtractiveModel)
    assert isinstance(from_environment({"OPENAI_API_KEY": ""}), ExtractiveModel)
    assert isinstance(from_environment(KEY), OpenAIModel)


@pytest.mark.requirement("MODEL-SWITCH")
def test_a_key_without_the_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        return None

    monkeypatch.setattr(select, "find_spec", missing)
    with pytest.raises(NotSupported) as refused:
        from_environment(KEY)
    assert refused.value.hint is not None
    assert "loomos[openai]" in refused.value.hint


@pytest.mark.parametrize(
    ("choice", "extra", "name"),
    [
        ("auto", {}, DEFAULT_MODEL),
        ("auto", {"OPENAI_MODEL": "small"}, "small"),
        ("openai", {"OPENAI_MODEL": "small"}, "small"),
        ("openai:large", {"OPENAI_MODEL": "small"}, "large"),
        ("auto", {"LOOM_MODELS__DEFAULT": "openai:other"}, "other"),
    ],
)
def test_the_model_is_named_by_choice_before_environment(
    choice: str, extra: dict[str, str], name: str
) -> None:
    assert from_environment({**KEY, **extra}, choice).name == name


def test_a_key_is_not_used_where_the_extractive_model_is_chosen() -> None:
    assert isinstance(from_environment(KEY, "extractive"), ExtractiveModel)
    chosen = {**KEY, "LOOM_MODELS__DEFAULT": "extractive"}
    assert isinstance(from_environment(chosen), ExtractiveModel)


def test_a_choice_that_needs_a_key_names_the_variable() -> None:
    with pytest.raises(Unauthenticated) as refused:
        from_environment({}, "openai:large")
    assert refused.value.field == "OPENAI_API_KEY"


@pytest.mark.parametrize("choice", ["gpt", "", "extractive:small", "anthropic:x"])
def test_an_unknown_choice_is_refused(choice: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        from_environment(KEY, choice)
    assert refused.value.field == "models.default"


def test_choosing_a_model_loads_no_sdk() -> None:
    code = (
        "import sys; from loom.models import from_environment;"
        "from_environment({'OPENAI_API_KEY': 'x'}); print('openai' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
