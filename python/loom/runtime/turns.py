"""One agent at work.

Which handler takes an event, what its outcome means, and what the engine is told.
"""

import logging
from collections.abc import Callable
from typing import Any

from loom.agent import AgentSpec, Route
from loom.codec import encode
from loom.envelope import BYTES_TYPE, Envelope, Event
from loom.errors import Cancelled, HandlerError, InvalidParams, LoomError
from loom.limits import TOPIC_CACHE
from loom.middleware import around
from loom.runtime.host import Host, is_stopped, log_failure, tell_failure
from loom.runtime.pool import Target
from loom.validation import expected_of, invalid

_logger = logging.getLogger("loom.agent")


class Turns:
    """Runs the turns of one agent."""

    def __init__(
        self, host: Host, spec: AgentSpec, agent: Any, watch: Callable[[BaseException], None]
    ) -> None:
        self.host = host
        self._watch = watch
        self.is_retired: bool = False  # its object is being replaced: what it raises says nothing
        self._spec = spec
        self._made = [_target(agent, route, host) for route in spec.routes]
        self._targets: dict[str, Target] = {}
        self.only: Target | None = self._made[0] if len(self._made) == 1 else None

    def find(self, topic: str) -> Target:
        """Return the first handler in source order that takes the topic.

        Raises:
            InvalidParams: none does.
        """
        target = self._targets.get(topic)
        if target is not None:
            return target
        route = self._spec.route(topic)
        if route is None:
            raise InvalidParams(
                f"agent {self.host.name!r} has no handler for {topic!r}",
                field="topic",
                hint="add on_event, or a method with @loom.on",
            )
        if len(self._targets) >= TOPIC_CACHE:
            self._targets.clear()
        target = self._targets[topic] = self._made[self._spec.routes.index(route)]
        return target

    def misfit(self, item: Envelope, error: Exception) -> LoomError:
        """Return what to say of data that is not what the handler declared, or not JSON."""
        from pydantic import ValidationError

        accepts = self.find(item.topic).accepts
        if isinstance(error, ValidationError):
            name = getattr(accepts, "__name__", str(accepts))
            return invalid(error, "data", f"the data is not a {name}", expected_of(accepts))
        return InvalidParams(f"the payload is not JSON: {error}", field="data")

    def settle(self, item: Envelope, result: Any) -> None:
        """Give back what a handler returned as the reply."""
        if not item.wants_reply:
            raise HandlerError(
                f"agent {self.host.name!r} returned a value and nothing was asked",
                field="return",
                hint="a returned value answers a request: return it where event.wants_reply, "
                "else None",
            )
        link = self.host.link
        content_type = BYTES_TYPE if type(result) is bytes else None
        try:
            link.session.reply(item.lease, encode(result, "return", link.has_null), content_type)
        except link.refusal as error:
            raise link.translate(error, payload="return") from None

    def cut_off(self) -> LoomError:
        """Return what a turn has come to that was cancelled."""
        return Cancelled(f"agent {self.host.name!r} was cut off", who=self._who)

    def failed(self, item: Envelope, error: BaseException) -> None:
        """Tell the engine that the turn failed.

        Text and stack of an error that is not a LoomError stay in this process's log.
        """
        name = self.host.name
        who = self._who
        if isinstance(error, LoomError):
            told: LoomError = error
        elif is_stopped(error):
            told = self.cut_off()
        else:
            told = HandlerError(f"agent {name!r} raised {type(error).__name__}", who=who)
        log_failure(_logger, f"agent {name} on {item.topic}", told, error, heard=item.wants_reply)
        tell_failure(self.host, item.lease, told, who)
        if told is not error and not isinstance(told, Cancelled) and not self.is_retired:
            self._watch(error)

    @property
    def _who(self) -> str:
        return f"{self.host.services.namespace}/{self.host.name}"


def _target(agent: Any, route: Route, host: Host) -> Target:
    handle = agent if route.attribute is None else getattr(agent, route.attribute)
    if host.middleware:
        handle = around(host.middleware, handle, Event)
    if host.kept is not None:
        handle = host.kept.around(handle)
    return Target(handle, route.accepts, _validator(route.accepts))


def _validator(accepts: Any) -> Callable[[bytes], Any] | None:
    """Return what turns a payload into ``accepts``, None where anything is taken."""
    if accepts is None:
        return None
    if accepts is bytes:
        return as_it_is
    from pydantic import TypeAdapter

    return TypeAdapter[Any](accepts).validator.validate_json


def as_it_is(payload: bytes) -> bytes:
    """Take a payload as it travelled."""
    return payload
