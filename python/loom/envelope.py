"""What travels.

The Event a handler receives, the Receipt of a publish, the Replies of a request to many.

An Event is a view of the engine's immutable Envelope; its data is decoded when it is first read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, Literal, NewType, Protocol, TypeAlias

from typing_extensions import TypeVar

from loom.checks import check_number, check_text
from loom.codec import decode
from loom.errors import InvalidParams, LoomError, error_from_code
from loom.limits import TTL_MS_MAX
from loom.record import Record

QoS: TypeAlias = Literal["realtime", "batched", "background"]
"""Delivery class: newest wins, sender waits for room (the default), or spills."""

AckLevel: TypeAlias = Literal["accepted", "os", "disk"]
"""What a publish is promised: in memory, written, or synced to disk."""

ACK_CODES: Final[Mapping[str | None, int | None]] = {
    None: None,
    "accepted": 0,
    "os": 1,
    "disk": 2,
}

Position = NewType("Position", str)
"""A place in a log: opaque text. Texts of one log are ordered as the log is, with gaps."""

Start: TypeAlias = Literal["now", "beginning"] | Position | datetime
"""Where reading the log begins: with what comes, with the oldest, at a position, at a time."""

Refusal: TypeAlias = tuple[int, str, str | None, str | None, str | None, float | None]
"""What the engine refused: code, message, field, limit, hint, seconds until it may be tried."""

QOS_CODES: Final[Mapping[str | None, int]] = {None: 1, "realtime": 0, "batched": 1, "background": 2}
_QOS_NAMES: Final[tuple[QoS, ...]] = ("realtime", "batched", "background")

T = TypeVar("T", default=Any, covariant=True)
BYTES_TYPE: Final = "application/octet-stream"
_ACK, _NAK, _EXTEND, _TERM = range(4)  # how the engine counts what is said of a durable event
_LONGEST_DELAY: Final = TTL_MS_MAX // 1000  # seconds


class Envelope(Protocol):
    """The immutable record that travels, as the engine holds it."""

    @property
    def lease(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def content_type(self) -> str: ...
    @property
    def is_json(self) -> bool: ...
    @property
    def json(self) -> bytes | None: ...
    @property
    def sender(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def thread_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def correlation_id(self) -> str | None: ...
    @property
    def causation_id(self) -> str | None: ...
    @property
    def causes(self) -> list[str]: ...
    @property
    def wants_reply(self) -> bool: ...
    @property
    def reply_to(self) -> str | None: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def ttl_ms(self) -> int | None: ...
    @property
    def hop(self) -> int: ...
    @property
    def qos(self) -> int: ...
    @property
    def key(self) -> str | None: ...
    @property
    def time(self) -> float: ...
    @property
    def traceparent(self) -> str | None: ...
    @property
    def labels(self) -> list[str]: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def position(self) -> Position | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def is_durable(self) -> bool: ...
    def settle(self, how: int, millis: int | None, reason: str | None, /) -> Refusal | None: ...
    @property
    def streamed(self) -> bool: ...
    @property
    def credit(self) -> int: ...
    @property
    def effect_id(self) -> str | None: ...


class Receipt(Protocol):
    """What a publish was promised.

    ``level`` is the ack level reached; ``matched`` the number of subscriptions that got the event,
    or None where the engine does not tell; ``position`` its place in the log, or None where there
    is none.
    """

    @property
    def id(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def matched(self) -> int | None: ...
    @property
    def position(self) -> Position | None: ...


class Event(Record, Generic[T], frozen=True, gc=False, eq=False):
    """One event with its data decoded. Immutable.

    ``data`` is what the handler declared (``Event[Model]`` validates, ``Event[bytes]`` takes the
    payload as it travelled), else plain JSON values, or bytes where bytes were sent.
    """

    # Decoded before the handler starts, so that reading it costs no frame of Python.
    _envelope: Envelope
    data: T

    @property
    def envelope(self) -> Envelope:
        """The record that travelled."""
        return self._envelope

    @property
    def payload(self) -> bytes:
        """The data as it travelled."""
        return self._envelope.payload

    @property
    def id(self) -> str:
        """UUIDv7 of this event."""
        return self._envelope.id

    @property
    def topic(self) -> str:
        """Where it was published."""
        return self._envelope.topic

    @property
    def sender(self) -> str:
        """``namespace/name`` of the publisher, stamped by the engine."""
        return self._envelope.sender

    @property
    def namespace(self) -> str:
        """The namespace it was published in, stamped by the engine."""
        return self._envelope.namespace

    @property
    def thread_id(self) -> str:
        """The conversation it belongs to."""
        return self._envelope.thread_id

    @property
    def run_id(self) -> str:
        """The id of the root event that all this follows from."""
        return self._envelope.run_id

    @property
    def correlation_id(self) -> str | None:
        """What a request and its answers share."""
        return self._envelope.correlation_id

    @property
    def causation_id(self) -> str | None:
        """The event whose handling published this one."""
        return self._envelope.causation_id

    @property
    def causes(self) -> list[str]:
        """All events this one follows from, where it follows from several."""
        return self._envelope.causes

    @property
    def wants_reply(self) -> bool:
        """Whether somebody waits for a reply."""
        return self._envelope.wants_reply

    @property
    def reply_to(self) -> str | None:
        """Opaque id of the waiting call, or None."""
        return self._envelope.reply_to

    @property
    def deadline(self) -> float | None:
        """When the requester stops waiting, in seconds of the engine's monotonic clock."""
        return self._envelope.deadline

    @property
    def ttl(self) -> float | None:
        """Seconds after publishing in which it may be delivered, or None."""
        ttl_ms = self._envelope.ttl_ms
        return None if ttl_ms is None else ttl_ms / 1000

    @property
    def hop(self) -> int:
        """How many events stand between the root and this one."""
        return self._envelope.hop

    @property
    def qos(self) -> QoS:
        """Its delivery class."""
        return _QOS_NAMES[self._envelope.qos]

    @property
    def key(self) -> str | None:
        """The key that orders it, if one was given."""
        return self._envelope.key

    @property
    def time(self) -> float:
        """When it was published: wall clock, seconds since the epoch."""
        return self._envelope.time

    @property
    def content_type(self) -> str:
        """MIME type of the payload."""
        return self._envelope.content_type

    @property
    def traceparent(self) -> str | None:
        """W3C trace context, if the publisher gave one."""
        return self._envelope.traceparent

    @property
    def labels(self) -> list[str]:
        """Information-flow labels."""
        return self._envelope.labels

    @property
    def headers(self) -> dict[str, str]:
        """Free text headers."""
        return self._envelope.headers

    @property
    def position(self) -> Position | None:
        """Its place in the log, opaque and ordered; None for one that is not durable."""
        return self._envelope.position

    @property
    def attempt(self) -> int:
        """1 for the first delivery; of a durable event counted across restarts."""
        return self._envelope.attempt

    async def ack(self) -> None:
        """Say that this durable event is done: it is not delivered again, whatever comes after.

        A handler that returns has said it. An error after it is told, and nothing is redelivered.

        Raises:
            InvalidParams: the event is not durable, or was not delivered to a handler.
            Fenced: its turn is over, or it was said already how the turn ends.
        """
        self._settle(_ACK)

    async def nak(self, *, delay: float | None = None) -> None:
        """Say that this durable event could not be handled: it is delivered again.

        Args:
            delay: seconds until then; by default the pause grows with each attempt.

        Raises:
            InvalidParams: as ``ack`` does, or ``delay`` is no number of seconds from 0 to 86,400.
            Fenced: as ``ack`` does.
        """
        if delay is None:
            self._settle(_NAK)
            return
        seconds = check_number(delay, "delay")
        if not 0 <= seconds <= _LONGEST_DELAY:
            raise InvalidParams(
                f"a delay of {delay} s is out of range",
                field="delay",
                limit="ttl_ms_max",
                hint=f"give seconds, from 0 to {_LONGEST_DELAY:,}",
            )
        self._settle(_NAK, millis=round(seconds * 1000))

    async def extend(self) -> None:
        """Say that this durable event is being worked on: its lease starts anew.

        The lease of a handler whose event loop runs is renewed by itself; this is for one that
        keeps the loop from running for long at a time.

        Raises:
            InvalidParams: the event is not durable, or was not delivered to a handler.
            Fenced: its turn is over, or its lease has lapsed.
        """
        self._settle(_EXTEND)

    async def term(self, *, reason: str | None = None) -> None:
        """Give this durable event up: it becomes a dead letter, with ``reason``.

        Raises:
            InvalidParams: as ``ack`` does, or ``reason`` is no text.
            Fenced: as ``ack`` does.
        """
        self._settle(_TERM, reason="" if reason is None else check_text(reason, "reason"))

    def _settle(self, how: int, *, millis: int | None = None, reason: str | None = None) -> None:
        refused = self._envelope.settle(how, millis, reason)
        if refused is not None:
            code, message, field, limit, hint, retry_after = refused
            raise error_from_code(
                code, message, field=field, limit=limit, hint=hint, retry_after=retry_after
            )

    def __repr__(self) -> str:
        return f"<Event {self.topic} {self.id} from {self.sender}>"


def check_start(start: object) -> Start:
    """Return ``start`` if it says where reading begins; a position is read where the log is.

    Raises:
        InvalidParams: it is something else, or a time without a time zone.
    """
    hint = 'use "now", "beginning", a position, or a datetime with a time zone'
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise InvalidParams(
                f"the time {start.isoformat()} has no time zone",
                field="start",
                hint="datetime.now(UTC), or .astimezone() for one of this machine",
            )
        return start
    if not isinstance(start, str) or not start:
        raise InvalidParams(f"start is {start!r}", field="start", hint=hint)
    return Position(start)


def start_code(start: Start) -> str | int:
    """Return ``start`` as the engine reads it: text, or milliseconds since 1970."""
    return int(start.timestamp() * 1000) if isinstance(start, datetime) else start


def opened(envelope: Envelope) -> Event[Any]:
    """Return an event with its data as plain JSON values, or bytes.

    Raises:
        InvalidParams: the payload is not the JSON that its content type says.
    """
    payload = envelope.json
    return Event(envelope, envelope.payload if payload is None else decode(payload))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies(Generic[T]):
    """What came back to a request to many.

    Answers in the order they came, failures, and how many are missing.
    """

    items: list[Event[T]]
    failures: list[LoomError]
    missing: int
