"""The model for when there is none: it answers by quoting its context, with sources.

An extractive summariser, deterministic and without weights; ``ranking`` chooses the sentences. It
writes nothing of its own, does no reasoning, and says so when the context has no answer.
"""

import re
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from loom.errors import NotSupported
from loom.models.base import Answer, check_texts, cited, title_and_body
from loom.models.ranking import Sentence, best, questions, sentences
from loom.models.words import stems

NOTHING_FOUND: Final = "Nothing in the sources at hand answers this."

_D = TypeVar("_D")


class ExtractiveModel:
    """Answers by quoting its context; ``system`` and ``temperature`` have nothing to steer."""

    name = "extractive (offline)"
    provider = "extractive (offline)"

    async def aclose(self) -> None:
        """Nothing to give back."""

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        returns: None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[None]: ...
    @overload
    async def generate(
        self,
        prompt: str,
        *,
        returns: type[_D],
        system: str | None = None,
        context: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[_D]: ...
    async def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        returns: type[Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[Any]:
        """Answer ``prompt`` with sentences of ``context``.

        A structured answer is possible where all it asks for is quoted text: ``str``,
        ``list[str]``, or a model whose fields are of these two types.

        Raises:
            InvalidParams: ``prompt`` is no text, or ``context`` no list of texts.
            NotSupported: ``returns`` asks for more than quoting.
        """
        check_texts(prompt, context)
        shape = None if returns is None else _quotable(returns, context)
        paragraphs, cut = _within(_answer(prompt, context), max_tokens)
        text = "\n\n".join(" ".join(quotes) for quotes in paragraphs)
        value: Any = None
        if returns is not None and shape is not None:
            value = _filled(returns, shape, [quote for quotes in paragraphs for quote in quotes])
        reason = "length" if cut else "stop"
        return Answer(
            text=text or NOTHING_FOUND,
            data=value,
            model=self.name,
            provider=self.provider,
            finish_reason=reason if text else "nothing_found",
            sources=cited(text, context),
        )

    @asynccontextmanager
    async def stream(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> AsyncGenerator[AsyncIterator[str], None]:
        """Answer sentence by sentence."""
        answer = await self.generate(prompt, context=context, max_tokens=max_tokens)

        async def pieces() -> AsyncIterator[str]:
            for piece in re.split(r"(?<=\])(?=\s)", answer.text):
                yield piece

        yield pieces()


def _answer(prompt: str, context: Sequence[str]) -> list[list[str]]:
    """Return a paragraph of quotes for each question of the prompt that the context answers."""
    candidates = sentences(context)
    taken: set[str] = set()
    paragraphs: list[list[str]] = []
    for question in questions(prompt):
        chosen = [one for one in best(question, candidates) if one.text not in taken]
        taken.update(one.text for one in chosen)
        if chosen:
            paragraphs.append(_quoted(chosen, context))
    return paragraphs


def _quoted(chosen: Sequence[Sentence], context: Sequence[str]) -> list[str]:
    """Return the sentences with their markers, the first of a document with its title, too."""
    quotes: list[str] = []
    before: int | None = None
    for one in chosen:
        title, _ = title_and_body(context[one.document])
        told = " " in title and frozenset(stems(one.name)) <= one.words
        lead = "" if not title or told or one.document == before else f"{title}: "
        stop = "" if one.text.rstrip(')"”').endswith((".", "!", "?")) else "."
        quotes.append(f"{lead}{one.text}{stop} [{one.document + 1}]")
        before = one.document
    return quotes


def _within(paragraphs: list[list[str]], max_tokens: int | None) -> tuple[list[list[str]], bool]:
    """Keep whole sentences while the words of the answer are at most ``max_tokens``."""
    if max_tokens is None:
        return paragraphs, False
    kept: list[list[str]] = []
    room = max_tokens
    for quotes in paragraphs:
        fitting: list[str] = []
        for quote in quotes:
            room -= len(quote.split())
            if room < 0:
                return ([*kept, fitting] if fitting else kept), True
            fitting.append(quote)
        kept.append(fitting)
    return kept, False


# -- structured answers ----------------------------------------------------------------------------


def _quotable(returns: type[Any], context: Sequence[str]) -> Mapping[str, Any] | Any:
    """Return the fields to fill with quotes, or the type itself where it is text or texts."""
    fields = getattr(returns, "__pydantic_fields__", None)
    if context and (_is_text(returns) or _is_texts(returns)):
        return returns
    if context and fields:
        hints: dict[str, Any] = {name: info.annotation for name, info in fields.items()}
        if all(_is_text(hint) or _is_texts(hint) for hint in hints.values()):
            return hints
    raise NotSupported(
        f"quotes of the context cannot answer as {getattr(returns, '__name__', returns)}",
        field="returns" if context else "context",
        hint="give context, and ask for text or a model of texts; or set OPENAI_API_KEY",
    )


def _is_text(hint: object) -> bool:
    return hint is str


def _is_texts(hint: object) -> bool:
    return typing.get_origin(hint) is list and typing.get_args(hint) == (str,)


def _filled(returns: type[Any], shape: Mapping[str, Any] | Any, quotes: list[str]) -> Any:
    text = " ".join(quotes) or NOTHING_FOUND
    if not isinstance(shape, dict):
        return text if _is_text(shape) else quotes
    hints = typing.cast("dict[str, Any]", shape)
    values = {name: text if _is_text(hint) else quotes for name, hint in hints.items()}
    try:
        return TypeAdapter[Any](returns).validate_python(values)
    except ValidationError as error:
        raise NotSupported(
            f"quotes do not fit {returns.__name__}: {error.errors()[0]['msg']}", field="returns"
        ) from None
