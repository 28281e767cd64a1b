"""One agent at work.

Which handler takes an event, what its outcome means, and what the engine is told.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from loom.agent import AgentSpec, Route
from loom.codec import encode
from loom.context import Context, invalid
from loom.envelope import BYTES_TYPE, Envelope, Event
from loom.errors import CODES, HandlerError, InvalidParams, LoomError
from loom.limits import TOPIC_CACHE
from loom.runtime.host import Host, error_detail, error_number

_CANCELLED: Final = CODES["CANCELLED"]
_logger = logging.getLogger("loom.agent")


@dataclass(frozen=True, slots=True)
class _Target:
    """A handler ready to run, with what checks its data."""

    handle: Callable[[Context[Any], Event[Any]], Awaitable[Any]]
    validate: Callable[[bytes], Any] | None


class Turns:
    """Runs the turns of one agent. ``run`` is what its pool calls."""

    def __init__(self, host: Host, spec: AgentSpec, agent: Any) -> None:
        self._host = host
        self._spec = spec
        self._agent = agent
        self._targets: dict[str, _Target | None] = {}
        self._made: dict[int, _Target] = {}

    async def run(self, item: Envelope) -> int:
        """Run the handler for one event; return its lease if it ended well."""
        lease = item.lease
        host = self._host
        topic = item.topic
        try:
            target = self._targets[topic]
        except KeyError:
            target = self._find(topic)
        try:
            if target is None:
                raise InvalidParams(
                    f"agent {host.name!r} has no handler for {topic!r}",
                    field="topic",
                    hint="add on_event, or a method with @loom.on",
                )
            if target.validate is None:
                event: Event[Any] = Event(item)
            else:
                event = Event(item, target.validate(item.payload))
            result = await target.handle(Context(host, item, lease), event)
            if result is not None:
                self._reply(item, lease, result)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._fail(lease, _CANCELLED, b"")
                raise
            self._failed(lease, item, error)
            return 0
        except BaseException as error:  # noqa: BLE001  the root of user code: whatever it raises ends this turn only
            self._failed(lease, item, error)
            return 0
        return lease

    def _reply(self, item: Envelope, lease: int, result: Any) -> None:
        if not item.wants_reply:
            raise HandlerError(
                f"agent {self._host.name!r} returned a value and nothing was asked",
                field="return",
                hint="return None, or emit an event; a returned value answers a request",
            )
        link = self._host.link
        content_type = BYTES_TYPE if type(result) is bytes else None
        try:
            link.session.reply(lease, encode(result, field="return"), content_type)
        except link.refusal as error:
            raise link.translate(error, payload="return") from None

    def _failed(self, lease: int, item: Envelope, error: BaseException) -> None:
        """Tell the engine that the turn failed.

        Text and stack of a foreign error stay in this process's log.
        """
        name = self._host.name
        who = f"{self._host.services.namespace}/{name}"
        if isinstance(error, LoomError):
            told, number = error, error_number(error)
        else:
            kind = type(error).__name__
            told = HandlerError(f"agent {name!r} raised {kind}", who=who)
            number = error_number(told)
        _logger.error(
            "agent %s failed on %s (%s): %s", name, item.topic, item.id, told, exc_info=error
        )
        self._fail(lease, number, error_detail(told, who=who))

    def _fail(self, lease: int, number: int, detail: bytes) -> None:
        self._host.link.session.fail(lease, number, detail)
        self._host.link.look()

    # -- handlers ---------------------------------------------------------------------------------

    def _find(self, topic: str) -> _Target | None:
        route = self._spec.route(topic)
        target = None if route is None else self._target(route)
        if len(self._targets) >= TOPIC_CACHE:
            self._targets.clear()
        self._targets[topic] = target
        return target

    def _target(self, route: Route) -> _Target:
        made = self._made.get(id(route))
        if made is None:
            if route.attribute is None:
                handle = self._agent
            else:
                handle = getattr(self._agent, route.attribute)
            made = self._made[id(route)] = _Target(handle, _validator(route.accepts))
        return made


def _validator(accepts: Any) -> Callable[[bytes], Any] | None:
    """Return what turns a payload into ``accepts``, None where anything is taken."""
    if accepts is None or accepts is bytes:
        return None
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter[Any](accepts)
    name = getattr(accepts, "__name__", str(accepts))
    from_json = adapter.validator.validate_json

    def validate(payload: bytes) -> Any:
        try:
            return from_json(payload)
        except ValidationError as error:
            raise invalid(error, "data", f"the data is not a {name}") from None

    return validate
