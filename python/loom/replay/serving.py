"""What stands in for the engine while a turn is run again: it serves what was recorded.

Nothing in here reaches outside. What the code asks for is looked up among what the recorded turn
asked for, by kind, name and what it was asked with, the first that was not used yet; what is not
there is ``DIVERGED``. Results come back one at a time, in their recorded order, when nothing else
can go on: so a race is won by who won it then.
"""

import asyncio
import heapq
import inspect
import typing
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random  # noqa: TID251  seeded by the turn
from typing import Any, TypeVar, cast

from loom.codec import decode
from loom.envelope import ACK_CODES, Event, opened
from loom.errors import Diverged, InvalidParams, LoomError, NotSupported
from loom.link import digest
from loom.protocols import Answer, Memory, Model, Usage
from loom.replay.records import Entry, Recorded, Turn
from loom.runtime.steps import Steps, encoded, model_args, name_of

T = TypeVar("T")

_CALM_ROUNDS = 12  # as in Running.calm: a finished future needs two turns of the loop per task
_SHOWN = 120  # characters of data that a difference shows


class Refusal(Exception):
    """Stands for the engine's own refusal: a Context translates it into the error it carries."""

    def __init__(self, error: LoomError) -> None:
        super().__init__(str(error))
        self.error = error


class Order:
    """Gives results back in the order in which they came true in the record."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0
        self._calm = 0
        self._looks = False

    async def until(self, n: int) -> None:
        """Return when it is the turn of what came true at ``n``."""
        come: asyncio.Future[None] = self._loop.create_future()
        self._count += 1
        heapq.heappush(self._waiting, (n, self._count, come))
        self._calm = 0
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._look)
        await come

    def _look(self) -> None:
        self._calm += 1
        while self._waiting and self._waiting[0][2].done():  # cancelled meanwhile
            heapq.heappop(self._waiting)
        if not self._waiting:
            self._looks = False
            return
        if self._calm >= _CALM_ROUNDS:
            self._calm = 0
            heapq.heappop(self._waiting)[2].set_result(None)
        self._loop.call_soon(self._look)


class Tape:
    """The record of one turn, while the turn is run again."""

    def __init__(self, turn: Turn, order: Order) -> None:
        self.turn = turn
        self.order = order
        self.differs: list[str] = []  # what diverged, in words
        self._by_key: dict[tuple[str, str, bytes], deque[Entry]] = defaultdict(deque)
        self._emits: dict[str, deque[Entry]] = defaultdict(deque)
        for entry in sorted(turn.entries, key=lambda entry: entry.n):
            if entry.kind == "emit":
                self._emits[entry.name].append(entry)
            else:
                self._by_key[_key(entry.kind, entry.name, entry.asked)].append(entry)

    def take(self, kind: str, name: str, asked: bytes = b"") -> Entry:
        """Return what was recorded for this.

        Raises:
            Refusal: the record has no such thing, or no more of it: the turn has diverged.
        """
        found = self._by_key.get(_key(kind, name, digest(asked)))
        if not found:
            raise self.diverged(self._difference(kind, name, asked))
        return self._use(found.popleft())

    def emitted(self, topic: str, payload: bytes) -> Entry:
        """Return the record of an event: those of one topic keep their order."""
        found = self._emits.get(topic)
        if not found:
            raise self.diverged(f"it publishes {topic!r}, which the record has not (any more)")
        entry = found.popleft()
        if entry.asked != digest(payload):
            what = f"recorded {_cut(entry.payload)}, now {_cut(payload)}"
            raise self.diverged(f"it publishes {topic!r} with other data: {what}")
        return self._use(entry)

    def diverged(self, what: str) -> Refusal:
        """Take note of a difference; return what to raise."""
        place = _place()
        told = f"{what}{f' ({place})' if place else ''}"
        self.differs.append(told)
        step = sum(entry.used for entry in self.turn.entries) + 1
        return Refusal(
            Diverged(
                f"step {step} of the turn of {self.turn.agent!r} is not in its record: {what}",
                who=self.turn.agent,
                hint=f"at {place}" if place else None,
            )
        )

    def left(self) -> list[str]:
        """Return what the record has and the code did not ask for."""
        left = (entry for entry in self.turn.entries if not entry.used)
        return [f"it did not do what was recorded: {_named(entry)}" for entry in left]

    async def end(self, entry: Entry) -> None:
        """Return when an entry ended, as it ended; one that did not end stays pending.

        Raises:
            LoomError: what it ended with.
        """
        if entry.done is None or entry.is_cancelled:
            await asyncio.get_running_loop().create_future()
        await self.order.until(cast("int", entry.done))
        if entry.error is not None:
            raise entry.error

    def _use(self, entry: Entry) -> Entry:
        entry.used = True
        return entry

    def _difference(self, kind: str, name: str, asked: bytes) -> str:
        others = [e for e in self.turn.entries if e.kind == kind and e.name == name and not e.used]
        what = f"{kind} {name}".rstrip()
        if not others:
            return f"{what} {_cut(asked)} was never made".replace("  ", " ")
        then = f", recorded with {_cut(others[0].payload)}" if others[0].payload else ""
        return f"{what} is asked with {_cut(asked)}{then}"


def _key(kind: str, name: str, asked: bytes) -> tuple[str, str, bytes]:
    return kind, "" if kind.startswith("model") else name, asked


def _named(entry: Entry) -> str:
    return f"{entry.kind} {entry.name} {_cut(entry.payload)}".replace("  ", " ").rstrip()


def _cut(payload: bytes) -> str:
    text = payload[:_SHOWN].decode(errors="backslashreplace")
    return f"{text}…" if len(payload) > _SHOWN else text


def _place() -> str | None:
    """Return file and line of the user's code that is running."""
    frame = inspect.currentframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module != "loom" and not module.startswith(("loom.", "asyncio", "contextlib")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class Served(Steps):
    """Gives a turn what it has read then."""

    def __init__(self, tapes: dict[int, Tape], events: Callable[[str], Recorded | None]) -> None:
        self._tapes = tapes
        self._events = events

    def _tape(self, turn: Any) -> Tape:
        if turn is None:
            raise _outside()
        return self._tapes[turn.lease]

    def _at_once(self, turn: Any, kind: str, name: str = "") -> Any:
        try:
            return _value(self._tape(turn).take(kind, name))
        except Refusal as refusal:
            raise refusal.error from None

    def now(self, turn: Any) -> float:
        """Return the time as it was."""
        return self._at_once(turn, "now")

    def monotonic(self, turn: Any) -> float:
        """Return the clock as it was."""
        return self._at_once(turn, "monotonic")

    async def sleep(self, turn: Any, seconds: float) -> None:
        """Return when the sleep ended, as seen from what else went on."""
        await self.ended(turn, "sleep", str(seconds))

    def random(self, turn: Any, agent: str) -> Random:
        """Return the generator that the turn had."""
        return Random(f"{'' if turn is None else turn.id} {agent}")  # noqa: S311

    def memory(self, turn: Any) -> Memory:
        """Return the memory as the turn found it."""
        return _ServedMemory(self, turn)

    def model(self, turn: Any) -> Model:
        """Return what gives the recorded answers."""
        return cast("Model", _ServedModel(self, turn))

    async def directory(self, turn: Any, kind: str) -> list[dict[str, Any]]:
        """Return the directory as it was."""
        return self._at_once(turn, "directory", kind)

    def heard(
        self, turn: Any, patterns: Sequence[str], events: AsyncIterator[Event[Any]]
    ) -> AsyncIterator[Event[Any]]:
        """Return the events that the turn has heard."""
        return self._heard(turn, patterns, events)

    async def _heard(
        self, turn: Any, patterns: Sequence[str], events: AsyncIterator[Event[Any]]
    ) -> AsyncIterator[Event[Any]]:
        name = " ".join(patterns)
        tape = self._tape(turn)
        while True:
            try:
                entry = tape.take("heard", name)
            except Refusal:
                tape.differs.pop()  # who listens on has heard no more: that is no difference
                await asyncio.get_running_loop().create_future()
                raise
            await tape.end(entry)
            event = self._events(_value(entry))
            if event is None:
                raise tape.diverged(f"the event it heard on {name} is not kept any more").error
            yield opened(event)

    async def run(
        self, turn: Any, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], named: Any
    ) -> T:
        """Return what ``fn`` has given; it is not called."""
        entry = await self.ended(turn, "step", name_of(fn), encoded([args, named]) or b"")
        value = _value(entry)
        returns = typing.get_type_hints(fn).get("return") if callable(fn) else None
        return value if returns is None else _as(returns, value)

    def refused(self, turn: Any, kind: str, name: str, args: bytes, error: LoomError) -> None:
        """Nothing: it is recorded already."""

    async def ended(self, turn: Any, kind: str, name: str, asked: bytes = b"") -> Entry:
        """Return what was recorded, when it ended.

        Raises:
            LoomError: what it ended with, or DIVERGED.
        """
        tape = self._tape(turn)
        try:
            entry = tape.take(kind, name, asked)
        except Refusal as refusal:
            raise refusal.error from None
        await tape.end(entry)
        if "lost" in entry.facts:
            raise tape.diverged(f"{kind} {name}: {entry.facts['lost']}").error
        return entry


def _outside() -> LoomError:
    return NotSupported(
        "outside a turn nothing is recorded, and a replay does nothing outside",
        field="ctx",
        hint="what on_start reads or calls cannot be replayed: do it in the first turn",
    )


def _value(entry: Entry) -> Any:
    return decode(entry.result) if entry.result else None


def _as(returns: Any, value: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(returns).validate_python(value)


class _ServedMemory:
    def __init__(self, steps: Served, turn: Any) -> None:
        self._steps = steps
        self._turn = turn

    async def get(self, key: str, default: Any = None) -> Any:
        entry = await self._steps.ended(self._turn, "memory.get", str(key))
        return _value(entry) if entry.result else default

    async def put(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        asked = encoded([value, ttl]) or b""
        await self._steps.ended(self._turn, "memory.put", str(key), asked)

    async def delete(self, key: str) -> bool:
        return _value(await self._steps.ended(self._turn, "memory.delete", str(key)))

    async def scan(self, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
        entry = await self._steps.ended(self._turn, "memory.scan", prefix)
        for key, value in _value(entry):
            yield key, value


class _ServedModel:
    def __init__(self, steps: Served, turn: Any) -> None:
        self._steps = steps
        self._turn = turn

    @property
    def name(self) -> str:
        return "recorded"

    async def aclose(self) -> None:
        """Nothing is open."""

    async def generate(self, prompt: str, **options: Any) -> Answer[Any]:
        asked = model_args(prompt, options)
        told = _value(await self._steps.ended(self._turn, "model", "", asked))
        returns = options.get("returns")
        told["usage"] = Usage(**told["usage"])
        if returns is not None:
            told["data"] = _as(returns, told["data"])
        return Answer(**told)

    @asynccontextmanager
    async def stream(self, prompt: str, **options: Any) -> AsyncGenerator[AsyncIterator[str]]:
        asked = model_args(prompt, options)
        entry = await self._steps.ended(self._turn, "model.stream", "", asked)

        async def pieces() -> AsyncIterator[str]:
            for piece in _value(entry):
                yield piece
            if "code" in entry.facts:
                from loom.errors import CODES, error_from_code

                raise error_from_code(CODES[entry.facts["code"]], entry.facts["message"])

        yield pieces()


class Engine:
    """The engine of a replay: it has no clock, and no log but the one that is replayed."""

    has_directory = True  # what is in the record was taken by a log on disk, acks and all

    def __getattr__(self, name: str) -> Any:
        raise _outside()


class Session:
    """The session of a replay: each publish, request, call and reply is looked up in its tape."""

    def __init__(self, tapes: dict[int, Tape]) -> None:
        self._tapes = tapes
        self.root = 0
        self.pending = False
        self.waits: list[tuple[Tape, Entry]] = []

    def _tape(self, turn: Any) -> Tape | None:
        return None if turn is None else self._tapes[turn.lease]

    def emit(self, sender: int, turn: Any, topic: str, payload: bytes, qos: int) -> None:
        """Leave it to the careful way, so that a difference is noted once."""

    def offer(
        self,
        sender: int,
        turn: Any,
        topic: str,
        payload: bytes,
        qos: int,
        options: Any,
        ack: int | None = None,
    ) -> Recorded:
        """Return the receipt of then."""
        tape = self._tape(turn)
        if tape is None:
            return _nowhere(topic, payload)
        entry = tape.emitted(topic, payload)
        if entry.error is not None:
            raise Refusal(entry.error)
        event = cast("Recorded", entry.event)
        key = None if options is None else options[0]
        if event.key != key or event.qos != qos:
            now, then = f"key {key!r}, class {qos}", f"key {event.key!r}, class {event.qos}"
            raise tape.diverged(f"it publishes {topic!r} with {now}; recorded {then}")
        event.asked = next((name for name, code in ACK_CODES.items() if code == ack), None)
        return event

    def request(
        self, sender: int, turn: Any, topic: str, payload: bytes, timeout: float, *_: Any
    ) -> int:
        """Return the number of a request."""
        return self._begin(turn, "request", topic, payload)

    def call(
        self, sender: int, turn: Any, name: str, payload: bytes, timeout: float, *_: Any
    ) -> int:
        """Return the number of a call."""
        return self._begin(turn, "call", name, payload)

    def _begin(self, turn: Any, kind: str, name: str, payload: bytes) -> int:
        tape = self._tape(turn)
        if tape is None:
            raise Refusal(_outside())
        entry = tape.take(kind, name, payload)
        if entry.error is not None and entry.event is None and not entry.payload:
            raise Refusal(entry.error)  # it was refused at once
        self.waits.append((tape, entry))
        return len(self.waits) - 1

    def reply(self, lease: int, payload: bytes, content_type: str | None) -> bool:
        """Look up the answer of then."""
        entry = self._tapes[lease].take("reply", "", payload)
        if entry.error is not None:
            raise Refusal(entry.error)
        return True

    def log(self, sender: int, turn: Any, level: str, payload: bytes) -> None:
        """Nothing: what was logged then is in the record."""

    def subscribe(self, filters: Sequence[str], qos: int) -> int:
        """Return a handle that gives nothing: what was heard comes out of the tape."""
        return 0

    def __getattr__(self, name: str) -> Any:
        raise Refusal(_outside())


def _nowhere(topic: str, payload: bytes) -> Recorded:
    """Return the receipt of an event that nobody gets: it was published outside a turn."""
    return Recorded(
        id="",
        topic=topic,
        sender="",
        namespace="",
        thread_id="",
        run_id="",
        correlation_id=None,
        causation_id=None,
        ttl_ms=None,
        key=None,
        time=0.0,
        hop=0,
        qos=1,
        content_type="",
        is_json=False,
        headers={},
        labels=[],
        causes=[],
        traceparent=None,
        payload=payload,
        n=0,
        matched=0,
    )


class Link:
    """The link of a replay: who waits gets what was recorded, in the order of then."""

    refusal = Refusal

    def __init__(self, session: Session) -> None:
        self.session = session
        self.emit: Callable[[int, Any, str, bytes, int], None] = session.emit
        self.waiting = 0

    @staticmethod
    def has_null(payload: bytes) -> bool:
        """Tell whether NaN may hide in a payload."""
        return b"null" in payload

    def translate(self, error: Refusal, *, payload: str = "data") -> LoomError:
        """Return the error that a refusal carries."""
        return error.error

    def check_thread(self) -> None:
        """Any thread may wait."""

    def look(self) -> None:
        """There is no inbox."""

    async def parked(self, ticket: int) -> Any:
        """Never called: offers are answered at once."""
        raise InvalidParams("nothing is parked in a replay")

    async def one_answer(self, call: int, timeout: float) -> Recorded:
        """Return the first answer to a request."""
        tape, entry = self.session.waits[call]
        await tape.end(entry)
        return entry.answers[0]

    async def many_answers(self, call: int, timeout: float) -> Any:
        """Return all answers to a request."""
        tape, entry = self.session.waits[call]
        if entry.error is not None and not entry.is_cancelled:
            await tape.order.until(entry.done or 0)
        else:
            await tape.end(entry)
        return _Many(entry)

    async def outcome(self, call: int, timeout: float) -> bytes:
        """Return the result of a call."""
        tape, entry = self.session.waits[call]
        await tape.end(entry)
        return entry.result

    @asynccontextmanager
    async def chunks(self, call: int, timeout: float) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Give the chunks of a streamed call."""
        tape, entry = self.session.waits[call]

        async def each() -> AsyncIterator[bytes]:
            for chunk in entry.chunks:
                yield chunk
            await tape.end(entry)

        yield each()

    def on_ready(self, handle: int, wake: Callable[[], None]) -> None:
        """Nothing comes."""

    def on_close(self, handle: int, end: Callable[[], None]) -> None:
        """It is never closed."""

    def remove(self, handle: int) -> None:
        """There is nothing to remove."""


class _Many:
    def __init__(self, entry: Entry) -> None:
        self.answers = entry.answers
        self.summary = entry.summary
