"""What of an app is kept in its log: the states of its agents, and the values of its memory.

A state is written after each turn that changed it, before the engine hears that the turn has ended:
the log is a prefix, so whoever finds the turn done finds its state, too.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from loom.codec import encode
from loom.context import Context
from loom.envelope import Envelope, Event
from loom.errors import InvalidParams, LoomError
from loom.link import Link, Local
from loom.runtime.host import Host

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Handle = Callable[[Context[Any], Event[Any]], Awaitable[Any]]
_SHOWN = 200  # characters of what does not fit


class States:
    """The states of one agent, as its log has them."""

    def __init__(self, host: Host) -> None:
        """Read what the log has of ``host``'s states.

        Raises:
            InvalidParams: the declared type has no JSON form, or a state in the log does not fit
                it any more.
        """
        self._host = host
        self._written: dict[str, int] = {}  # what was written last, hashed
        self._adapter = _adapter_of(host)
        self._schema = _schema_of(self._adapter)
        for lane, payload in host.session.states(host.sender):
            host.states[lane] = self._read(lane, payload)
            self._written[lane] = hash(payload)

    def _read(self, lane: str, payload: bytes) -> Any:
        try:
            return self._adapter.validate_json(payload)
        except ValueError as error:
            name = self._host.name
            raise InvalidParams(
                f"agent {name!r}: its state of {lane!r} in the log does not fit "
                f"{_type_name(self._host)} any more: {str(error)[:_SHOWN]}",
                field="state",
                who=name,
                hint="give what is new in it a default, or rename the agent to start without "
                "states",
            ) from None

    def around(self, handle: Handle) -> Handle:
        """Return what runs ``handle`` and then writes the state that it has changed."""

        async def kept(ctx: Context[Any], event: Event[Any]) -> Any:
            try:
                return await handle(ctx, event)
            finally:
                self._write(event.envelope)

        return kept

    def _write(self, envelope: Envelope) -> None:
        host = self._host
        lane = envelope.key or envelope.thread_id
        if lane not in host.states:
            return  # nobody has looked at it
        payload = encode(host.states[lane], "state")
        if self._written.get(lane) == (written := hash(payload)):
            return
        try:
            host.session.keep_state(host.sender, cast("Any", envelope), lane, self._schema, payload)
        except host.link.refusal as error:
            raise host.link.translate(error, payload="state") from None
        self._written[lane] = written


def _adapter_of(host: Host) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        return TypeAdapter[Any](cast("type[Any]", host.state_type))
    except (PydanticSchemaGenerationError, PydanticUserError):
        raise InvalidParams(
            f"agent {host.name!r}: a state of type {_type_name(host)} cannot be kept in the log",
            field="state",
            who=host.name,
            hint="declare a Pydantic model, a dataclass, dict or list, or run without a data "
            "directory",
        ) from None


def _schema_of(adapter: "TypeAdapter[Any]") -> bytes:
    from pydantic.errors import PydanticUserError

    try:
        return encode(adapter.json_schema())
    except (PydanticUserError, LoomError):
        return b""  # it has no schema: nothing can be said of it


def _type_name(host: Host) -> str:
    return getattr(host.state_type, "__name__", str(host.state_type))


class Keeper:
    """Keeps the values of a memory in the log."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def values(self) -> list[tuple[str, bytes, float | None]]:
        """Return keys and values as the log has them, and until when by the wall's seconds."""
        kept = self._link.session.memories()
        return [(key, value, None if ms is None else ms / 1000) for key, value, ms in kept]

    def keep(self, key: str, payload: bytes | None, until: float | None = None) -> None:
        """Write a value, None: it was taken away; ``until`` in seconds of the wall.

        Raises:
            LoomError: the log does not take it.
        """
        session = self._link.session
        until_ms = None if until is None else int(until * 1000)
        try:
            session.keep_memory(session.root, key, payload, until_ms)
        except self._link.refusal as error:
            raise self._link.translate(error, payload="value") from None


def keeper_of(link: Link, engine: Local) -> Keeper | None:
    """Return what keeps the memory of an app; None where nothing outlives the process."""
    return Keeper(link) if engine.has_directory else None
