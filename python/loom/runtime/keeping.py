"""What of an app is kept in its log: the states of its agents, and the values of its memory.

The engine hears of the state that a turn leaves before it hears that the turn has ended, and writes
the state of a durable turn together with its ack: whoever finds the one finds the other, too. A
durable turn whose event will be given again leaves the state as it was before it.
"""

from collections.abc import Awaitable, Callable
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from loom.codec import encode
from loom.context import Context
from loom.envelope import Envelope, Event
from loom.errors import InvalidParams, LoomError
from loom.link import Engine, Link
from loom.runtime.host import Host

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Handle = Callable[[Context[Any], Event[Any]], Awaitable[Any]]
_SHOWN = 200  # characters of what does not fit


class States:
    """The states of one agent, as its log has them."""

    def __init__(self, host: Host) -> None:
        """Check that ``host``'s states can be kept.

        Raises:
            InvalidParams: the declared type has no JSON form.
        """
        self._host = host
        self._written: dict[str, bytes] = {}  # what the engine took last
        self._newest: dict[str, object] = {}  # the newest turn of a lane that goes on
        self._adapter = _adapter_of(host)
        self._schema = _schema_of(self._adapter)

    def of(self, host: Host) -> "States":
        """Return the same states for ``host``, which has come for one that is fenced.

        Turns of the earlier object that go on share what is known of the lanes, and write no more.
        """
        moved = copy(self)
        moved._host = host
        return moved

    async def load(self) -> None:
        """Read what the log has of them.

        Raises:
            InvalidParams: a state in the log does not fit the declared type any more.
        """
        host = self._host
        for lane, payload in await host.link.states(host.sender):
            host.states[lane] = self._read(lane, payload)
            self._written[lane] = payload

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
            envelope = event.envelope
            lane = envelope.key or envelope.thread_id
            if self._host.link.is_shared:
                await self._catch_up(lane)
            turn = self._newest[lane] = object()
            failed = True
            try:
                result = await handle(ctx, event)
                failed = False
                return result
            finally:
                is_newest = self._newest.get(lane) is turn
                if is_newest:
                    del self._newest[lane]
                self._leave(envelope, lane, failed=failed, is_newest=is_newest)

        return kept

    async def _catch_up(self, lane: str) -> None:
        """Take what another process has left in a lane that it had meanwhile."""
        host = self._host
        found = dict(await host.link.states(host.sender, lane))
        payload = found.get(lane)
        if payload == self._written.get(lane):
            return
        if payload is None:
            host.states.pop(lane, None)
            del self._written[lane]
        else:
            host.states[lane] = self._read(lane, payload)
            self._written[lane] = payload

    def _leave(self, envelope: Envelope, lane: str, *, failed: bool, is_newest: bool) -> None:
        host = self._host
        if lane not in host.states:
            return  # nobody has looked at it
        is_kept = False
        try:
            payload = encode(host.states[lane], "state")
            if is_kept := self._written.get(lane) == payload:
                return
            if is_kept := self._keep(envelope, lane, payload, failed=failed):
                self._written[lane] = payload
        except LoomError:
            if not failed:
                raise
            # it has failed already, and that is what is told
        finally:
            # a turn whose lease has lapsed leaves alone what the next one works on
            if not is_kept and is_newest:
                self._restore(lane)

    def _keep(self, envelope: Envelope, lane: str, payload: bytes, *, failed: bool) -> bool:
        host = self._host
        turn = cast("Any", envelope)
        try:
            return host.session.keep_state(host.sender, turn, lane, self._schema, payload, failed)
        except host.link.refusal as error:
            raise host.link.translate(error, payload="state") from None

    def _restore(self, lane: str) -> None:
        before = self._written.get(lane)
        if before is None:
            del self._host.states[lane]
        else:
            self._host.states[lane] = self._read(lane, before)


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
    """Keeps the values of a memory in the log; ``kept`` is what that had at first."""

    def __init__(self, link: Link, kept: list[tuple[str, bytes, int | None]]) -> None:
        self._link = link
        self._kept = kept
        self.is_shared: bool = link.is_shared

    def values(self) -> list[tuple[str, bytes, float | None]]:
        """Return keys and values as the log had them, and until when by the wall; once."""
        kept, self._kept = self._kept, []
        return _in_seconds(kept)

    async def fresh(self, key: str | None) -> list[tuple[str, bytes, float | None]]:
        """Return the value of a key, or all, as they are now where others change them, too."""
        return _in_seconds(await self._link.memories(key))

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


def _in_seconds(
    kept: list[tuple[str, bytes, int | None]],
) -> list[tuple[str, bytes, float | None]]:
    return [(key, value, None if ms is None else ms / 1000) for key, value, ms in kept]


async def keeper_of(link: Link, engine: Engine) -> Keeper | None:
    """Return what keeps the memory of an app; None where nothing outlives the process."""
    return Keeper(link, await link.memories()) if engine.has_directory else None
