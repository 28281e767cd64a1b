"""Which model an app gets: what its environment has a key for, else the one that needs none."""

from collections.abc import Mapping
from importlib.util import find_spec

from loom.errors import InvalidParams, NotSupported, Unauthenticated
from loom.models.base import Model
from loom.models.extractive import ExtractiveModel


def from_environment(environment: Mapping[str, str], choice: str = "auto") -> Model:
    """Return the model of ``choice``: ``auto``, ``extractive``, ``openai`` or ``openai:NAME``.

    ``auto`` is OpenAI's where ``OPENAI_API_KEY`` is set, else the extractive one.
    ``OPENAI_BASE_URL`` names another server that speaks the same, ``OPENAI_MODEL`` the model.
    ``LOOM_MODELS__DEFAULT`` in ``environment`` stands for ``choice`` where that is ``auto``.

    Raises:
        InvalidParams: there is no such choice.
        NotSupported: the extra that the choice needs is not installed.
        Unauthenticated: the choice needs a key that is not set.
    """
    if choice == "auto":
        choice = environment.get("LOOM_MODELS__DEFAULT", "auto")
    provider, _, name = choice.partition(":")
    if choice == "auto":
        provider = "openai" if environment.get("OPENAI_API_KEY") else "extractive"
    if provider == "extractive" and not name:
        return ExtractiveModel()
    if provider == "openai":
        return _openai(environment, name)
    raise InvalidParams(
        f"there is no model {choice!r}",
        field="models.default",
        hint="use auto, extractive, openai or openai:NAME",
    )


def _openai(environment: Mapping[str, str], name: str) -> Model:
    key = environment.get("OPENAI_API_KEY")
    if not key:
        raise Unauthenticated(
            "OPENAI_API_KEY is not set",
            field="OPENAI_API_KEY",
            hint="set it; a local server behind OPENAI_BASE_URL takes any value",
        )
    if find_spec("openai") is None:
        raise NotSupported(
            "OPENAI_API_KEY is set, but OpenAI's SDK is not installed",
            field="OPENAI_API_KEY",
            hint='pip install "loomos[openai]", or set LOOM_MODELS__DEFAULT=extractive',
        )
    from loom.models.openai import DEFAULT_MODEL, DEFAULT_URL, OpenAIModel

    return OpenAIModel(
        api_key=key,
        model=name or environment.get("OPENAI_MODEL") or DEFAULT_MODEL,
        base_url=(environment.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/"),
    )
