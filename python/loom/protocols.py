"""The seams for what is injected into an app: a memory and a model. Vocabulary only.

Rooms above implement them.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, overload

from typing_extensions import TypeVar

D = TypeVar("D", default=None)
_D = TypeVar("_D")


class Memory(Protocol):
    """A key-value store of one namespace. Values are what JSON can carry; keys are text."""

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        ...

    async def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Keep ``value`` under ``key``, for ``ttl`` seconds if given."""
        ...

    async def delete(self, key: str) -> bool:
        """Forget ``key``; tell whether it was there."""
        ...

    def scan(self, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
        """Yield keys that start with ``prefix`` and their values, in the order of the keys."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one answer cost, in tokens as the provider counts them; 0 where it does not count."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[D]):
    """What a model answered.

    ``data`` is the structured output where one was asked for, else None; ``sources`` are the
    indices of the context documents it cites; ``fallback`` says that another model than the one
    chosen first has answered (MODEL_FALLBACK).
    """

    text: str
    data: D
    model: str
    provider: str
    usage: Usage = Usage()
    finish_reason: str = "stop"
    fallback: bool = False
    sources: list[int] = field(default_factory=list[int])


class Model(Protocol):
    """Something that writes text from a prompt and context documents."""

    @property
    def name(self) -> str:
        """What this model is called, as shown to people."""
        ...

    async def aclose(self) -> None:
        """Give back connections; the app that runs it calls this when it stops."""
        ...

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

    def stream(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Answer in pieces of text as they are made; leaving the context stops the model."""
        ...
