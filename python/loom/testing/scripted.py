"""A model whose answers were written beforehand."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from loom.errors import Exhausted, InvalidParams
from loom.protocols import Answer, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question that a ScriptedModel was asked."""

    prompt: str
    system: str | None
    context: tuple[str, ...]
    returns: type[Any] | None


class ScriptedModel:
    """Gives its answers in order, and keeps what it was asked in ``prompts``.

    An answer is a text, a value for ``returns=``, an exception to raise, or a function of the
    Prompt that gives one of these.
    """

    name = "scripted"

    def __init__(self, answers: Iterable[Any] = ()) -> None:
        if isinstance(answers, str | bytes):
            raise InvalidParams(
                "the answers are one text", field="answers", hint="give a list: ScriptedModel([…])"
            )
        self._answers = list(answers)
        self.prompts: list[Prompt] = []

    async def aclose(self) -> None:
        """Nothing to give back."""

    async def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        returns: Any = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Any:
        """Return the next answer.

        Raises:
            Exhausted: there are no more answers.
        """
        asked = Prompt(prompt=prompt, system=system, context=tuple(context), returns=returns)
        self.prompts.append(asked)
        if not self._answers:
            raise Exhausted(
                f"the script has no answer number {len(self.prompts)}",
                field="answers",
                hint="give ScriptedModel as many answers as the test asks for",
            )
        answer = self._answers.pop(0)
        if callable(answer):
            answer: Any = answer(asked)
        if isinstance(answer, BaseException):
            raise answer
        text = answer if isinstance(answer, str) else repr(answer)
        return Answer(
            text=text,
            data=None if returns is None else answer,
            model=self.name,
            provider="scripted",
            usage=Usage(),
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
    ) -> AsyncGenerator[AsyncIterator[str]]:
        """Give the next answer word by word."""
        answer = await self.generate(prompt, system=system, context=context)

        async def words() -> AsyncIterator[str]:
            for word in answer.text.split(" "):
                yield word + " "

        yield words()
