"""What a Context reads from outside its event: the time, the memory, the model, the directory.

Each reading of a recorded turn becomes a step of it in the log, so that the turn can be run again
without the outside. Chance needs no step: it follows from the event's id and the agent's name. In
a replay another object stands here, and serves what was recorded.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar, cast

from loom.codec import CANNOT_ENCODE, decode, encode
from loom.envelope import Event
from loom.errors import Internal, LoomError
from loom.link import Engine, Link
from loom.protocols import Answer, Memory, Model
from loom.runtime.host import error_detail, error_number

T = TypeVar("T")

_MISSING = object()


class Steps:
    """Reads, and tells the log what a recorded turn has read."""

    def __init__(
        self,
        engine: Engine,
        link: Link,
        namespace: str,
        memory: Memory,
        model: Callable[[], Model],
        random: Random,
    ) -> None:
        self._engine = engine
        self._link = link
        self._namespace = namespace
        self._memory = memory
        self._model = model
        self._random = random

    # -- time and chance --------------------------------------------------------------------------

    def now(self, turn: Any) -> float:
        """Return seconds since the epoch."""
        return self._seen(turn, "now", self._engine.clock.wall())

    def monotonic(self, turn: Any) -> float:
        """Return seconds of the clock that never goes back."""
        return self._seen(turn, "monotonic", self._engine.clock.now())

    async def sleep(self, turn: Any, seconds: float) -> None:
        """Wait."""
        await self._engine.clock.sleep(seconds)
        if _is_recorded(turn):
            self.tell(turn, "sleep", str(seconds))

    def random(self, turn: Any, agent: str) -> Random:
        """Return a new generator that is the same whenever this agent handles this event."""
        if turn is None:
            return self._random
        return Random(f"{turn.id} {agent}")  # noqa: S311  for choices of user code, not for secrets

    # -- memory, model, directory -----------------------------------------------------------------

    def memory(self, turn: Any) -> Memory:
        """Return the memory as this turn sees it."""
        inner = self._memory
        return _ToldMemory(self, turn, inner) if _is_recorded(turn) else inner

    def model(self, turn: Any) -> Model:
        """Return the model as this turn sees it."""
        inner = self._model()
        return cast("Model", _ToldModel(self, turn, inner)) if _is_recorded(turn) else inner

    async def directory(self, turn: Any, kind: str) -> list[dict[str, Any]]:
        """Return what is registered: ``kind`` is "agent" or "capability"."""
        found = [decode(entry) for entry in await self._engine.directory(self._namespace, kind)]
        if _is_recorded(turn):
            self.tell(turn, "directory", kind, result=encode(found))
        return found

    def heard(
        self, turn: Any, patterns: Sequence[str], events: AsyncIterator[Event[Any]]
    ) -> AsyncIterator[Event[Any]]:
        """Return the events that a turn listens to."""
        return self._heard(turn, patterns, events) if _is_recorded(turn) else events

    async def _heard(
        self, turn: Any, patterns: Sequence[str], events: AsyncIterator[Event[Any]]
    ) -> AsyncIterator[Event[Any]]:
        async for event in events:
            self.tell(turn, "heard", " ".join(patterns), result=encode(event.id))
            yield event

    # -- the user's own steps, and what the engine refused ----------------------------------------

    async def run(
        self, turn: Any, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], named: Any
    ) -> T:
        """Run ``fn`` and return its result."""
        if not _is_recorded(turn):
            return await fn(*args, **named)
        asked = encoded([args, named]) or b""
        return await self.timed(turn, ("step", name_of(fn)), asked, fn(*args, **named), encoded)

    def refused(self, turn: Any, kind: str, name: str, args: bytes, error: LoomError) -> None:
        """Take note that the engine did not do what a turn asked for."""
        if _is_recorded(turn):
            self.tell(turn, f"refused {kind}", name, args, error=error)

    # -- telling ----------------------------------------------------------------------------------

    def _seen(self, turn: Any, kind: str, value: float) -> float:
        if _is_recorded(turn):
            self.tell(turn, kind, result=encode(value))
        return value

    async def timed(
        self,
        turn: Any,
        what: tuple[str, str],
        args: bytes,
        work: Awaitable[T],
        write: Callable[[T], bytes | None],
        facts: Callable[[T], dict[str, Any]] | None = None,
    ) -> T:
        """Wait for ``work`` and tell how it ended, after how long; a cancelled one has no end."""
        began = time.perf_counter()
        try:
            result = await work
        except Exception as error:
            told = error if isinstance(error, LoomError) else None
            self.tell(turn, *what, args, began=began, error=told or _strange(error))
            raise
        more = {} if facts is None else facts(result)
        self.tell(turn, *what, args, began=began, result=write(result), facts=more)
        return result

    def tell(
        self,
        turn: Any,
        kind: str,
        name: str = "",
        args: bytes = b"",
        *,
        result: bytes | None = b"",
        error: LoomError | None = None,
        began: float | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Leave a step for the log; ``result`` None says that it cannot be written down."""
        link = self._link
        micros = 0 if began is None else round((time.perf_counter() - began) * 1e6)
        more = dict(facts or {})
        if result is None:
            more["lost"] = "it has no JSON form"
        code = 0 if error is None else error_number(error)
        body = result or b"" if error is None else error_detail(error)
        try:
            link.session.step_done(turn, kind, name, args, code, micros, _json(more), body)
        except link.refusal as refused:
            more["lost"] = str(refused.args[1])  # the engine's message: it is too large
            link.session.step_done(turn, kind, name, args, code, micros, _json(more), b"")


def _is_recorded(turn: Any) -> bool:
    return turn is not None and turn.turn > 0


def _json(facts: dict[str, Any]) -> str:
    return encode(facts).decode() if facts else ""


def _strange(error: Exception) -> LoomError:
    """Return what the log says of an error that is none of Loom's."""
    return Internal(f"{type(error).__name__}: {error}")


def encoded(value: Any) -> bytes | None:
    """Return ``value`` as JSON; None where it has no such form."""
    try:
        return encode(value)
    except (LoomError, *CANNOT_ENCODE):
        return None


def name_of(fn: Any) -> str:
    """Return what a step is called that runs ``fn``."""
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


class _ToldMemory:
    """A memory whose use by one turn is recorded."""

    def __init__(self, steps: Steps, turn: Any, inner: Memory) -> None:
        self._steps = steps
        self._turn = turn
        self._inner = inner

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        value = await self._steps.timed(
            self._turn,
            ("memory.get", str(key)),
            b"",
            self._inner.get(key, _MISSING),
            lambda value: b"" if value is _MISSING else encoded(value),
        )
        return default if value is _MISSING else value

    async def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Keep ``value`` under ``key``."""
        await self._steps.timed(
            self._turn,
            ("memory.put", str(key)),
            encoded([value, ttl]) or b"",
            self._inner.put(key, value, ttl=ttl),
            lambda _: b"",
        )

    async def delete(self, key: str) -> bool:
        """Forget ``key``."""
        work = self._inner.delete(key)
        return await self._steps.timed(self._turn, ("memory.delete", str(key)), b"", work, encoded)

    async def scan(self, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
        """Yield keys that start with ``prefix`` and their values."""
        found: list[tuple[str, Any]] = []
        began = time.perf_counter()
        try:
            async for pair in self._inner.scan(prefix):
                found.append(pair)
                yield pair
        finally:
            result = encoded(found)
            self._steps.tell(self._turn, "memory.scan", prefix, result=result, began=began)


class _ToldModel:
    """A model whose use by one turn is recorded, with its tokens."""

    def __init__(self, steps: Steps, turn: Any, inner: Model) -> None:
        self._steps = steps
        self._turn = turn
        self._inner = inner

    @property
    def name(self) -> str:
        """What this model is called."""
        return self._inner.name

    async def aclose(self) -> None:
        """Give back connections."""
        await self._inner.aclose()

    async def generate(self, prompt: str, **options: Any) -> Answer[Any]:
        """Answer a prompt."""
        return await self._steps.timed(
            self._turn,
            ("model", self._inner.name),
            model_args(prompt, options),
            self._inner.generate(prompt, **options),
            encoded,
            _tokens,
        )

    @asynccontextmanager
    async def stream(self, prompt: str, **options: Any) -> AsyncGenerator[AsyncIterator[str]]:
        """Answer in pieces."""
        pieces: list[str] = []
        began = time.perf_counter()
        failed: LoomError | None = None

        async def kept(stream: AsyncIterator[str]) -> AsyncIterator[str]:
            nonlocal failed
            try:
                async for piece in stream:
                    pieces.append(piece)
                    yield piece
            except LoomError as error:
                failed = error
                raise

        try:
            async with self._inner.stream(prompt, **options) as stream:
                yield kept(stream)
        finally:
            facts = {} if failed is None else {"code": failed.code, "message": failed.message}
            self._steps.tell(
                self._turn,
                "model.stream",
                self._inner.name,
                model_args(prompt, options),
                result=encoded(pieces),
                began=began,
                facts=facts,
            )


def model_args(prompt: str, options: dict[str, Any]) -> bytes:
    """Return what a model was asked with, so that two questions can be compared."""
    returns = options.get("returns")
    asked = {**options, "returns": None if returns is None else name_of(returns)}
    context = list(options.get("context", ()))
    return encoded([prompt, {**asked, "context": context}]) or b""


def _tokens(answer: Answer[Any]) -> dict[str, Any]:
    return {
        "model": answer.model,
        "provider": answer.provider,
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
    }
