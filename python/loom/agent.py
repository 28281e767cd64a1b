"""Agents: named actors with filters, handlers and state.

An agent is a class derived from ``Agent`` with ``on_event`` and typed ``@loom.on`` handlers, or a
plain async function. One object serves one agent name; what belongs to one key or thread goes into
``ctx.state``.
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, cast

from typing_extensions import TypeVar

from loom.capabilities import Capability, MethodCapability, resolved, summary
from loom.checks import check_text, check_texts, check_whole
from loom.envelope import Event, QoS, Start, check_start
from loom.errors import InvalidParams, NotSupported
from loom.limits import AGENT_CONCURRENCY_MAX, AGENT_FILTERS, MAX_DELIVER, MAX_DELIVER_MAX
from loom.middleware import Middleware
from loom.topics import check_filter, check_name, matches

if TYPE_CHECKING:
    from loom.context import Context

S = TypeVar("S", default=None)
A = TypeVar("A", bound="Agent[Any]")

Handler: TypeAlias = Callable[..., Awaitable[Any]]
_MARK = "__loom_filters__"
_IMMUTABLE = (int, float, complex, bool, str, bytes, tuple, frozenset)


class Agent(Generic[S]):
    """Base class of agents.

    ``Agent[MyState]`` declares the state that ``ctx.state`` gives per key or thread.
    """

    async def on_start(self, ctx: "Context[Any]") -> None:
        """Run once before the first event. An error here is a crash: a new object is tried."""

    async def on_event(self, ctx: "Context[Any]", event: Event[Any]) -> Any:
        """Handle one event that no ``@loom.on`` method takes.

        A value returned is the reply to a request.

        ``Event[Model]`` in an override's hints declares what the data must be.
        """
        raise NotSupported(f"{type(self).__name__} has no on_event", field="on_event")

    async def on_stop(self, ctx: "Context[Any]") -> None:
        """Run once after the last event, within the time the app has to stop."""


_Method = TypeVar("_Method", bound="Callable[[Any, Context[Any], Event[Any]], Awaitable[Any]]")


def on(pattern: str) -> Callable[[_Method], _Method]:
    """Send events that match ``pattern`` to this method. The first match in source order wins.

    Raises:
        InvalidParams: ``pattern`` is not a filter.
    """
    check_filter(pattern)

    def mark(method: _Method) -> _Method:
        setattr(method, _MARK, (*getattr(method, _MARK, ()), pattern))
        return method

    return mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One handler and what it takes.

    ``accepts`` is the declared type of the data, None where it takes anything.
    """

    pattern: str
    attribute: str | None
    accepts: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """An agent as it was declared."""

    name: str
    filters: tuple[str, ...]
    group: str
    concurrency: int
    realtime: bool
    routes: tuple[Route, ...]
    make: Callable[[], Any]
    state_type: type[Any] | None
    description: str
    methods: tuple[str, ...]
    middleware: tuple[Middleware, ...] = ()
    start: Start = "now"
    max_deliver: int = MAX_DELIVER
    version: str = ""
    target: Any = None  # the class or function itself
    exclusive: bool = False  # a newer agent of its name takes its place

    def route(self, topic: str) -> Route | None:
        """Return the first handler in source order that takes ``topic``."""
        return next((r for r in self.routes if matches(r.pattern, topic)), None)


def spec_of(
    target: type[Agent[Any]] | Handler,
    name: str,
    *,
    topics: Sequence[str],
    group: str | None,
    concurrency: int,
    qos: QoS | None,
    durable: bool,
    exclusive: bool,
    start: Start,
    max_deliver: int,
    version: str = "",
) -> AgentSpec:
    """Return what was declared, checked.

    Raises:
        InvalidParams: names what is wrong in the declaration.
        NotSupported: the agent asks for what is not built yet.
    """
    check_name(name)
    topics = check_texts(topics, "topics")
    if group is not None:
        check_text(group, "group")
    if durable:
        raise NotSupported(
            f"agent {name!r}: durable agents are not built yet",
            field="durable",
            hint="leave it out; durable topics are there: [log] durable",
        )
    check_whole(concurrency, "concurrency", AGENT_CONCURRENCY_MAX, limit="agent_concurrency")
    if qos not in (None, "realtime"):
        raise InvalidParams(
            f"agent {name!r}: qos is {qos!r}",
            field="qos",
            hint='an agent can only lower the class of what it hears: "realtime", or leave it out',
        )
    check_whole(max_deliver, "max_deliver", MAX_DELIVER_MAX, limit="max_deliver")
    begins = check_start(start)
    if version:
        check_text(version, "version")
    for topic in topics:
        check_filter(topic, field="topics")
    if inspect.isclass(target):
        routes, methods = _class_routes(target, name, topics)
    else:
        routes, methods = _function_routes(target, name, topics), ()
    filters = tuple(dict.fromkeys([*topics, *(r.pattern for r in routes if r.pattern != ">")]))
    if not filters and not methods:
        raise InvalidParams(
            f"agent {name!r} listens to nothing and offers nothing",
            field="topics",
            hint='give topics=["…"], an @loom.on handler, or an @loom.capability method',
        )
    if len(filters) > AGENT_FILTERS:
        raise InvalidParams(
            f"agent {name!r} has {len(filters)} filters", field="topics", limit="agent_filters"
        )
    return AgentSpec(
        name=name,
        filters=filters,
        group=group or name,
        concurrency=concurrency,
        realtime=qos == "realtime",
        routes=routes,
        make=target if inspect.isclass(target) else lambda: target,
        state_type=_state_type(target),
        description=summary(target),
        methods=methods,
        start=begins,
        max_deliver=max_deliver,
        version=version,
        target=target,
        exclusive=exclusive,
    )


def source_of(spec: AgentSpec) -> bytes:
    """Return the source of what handles an agent's events; nothing where it cannot be read."""
    try:
        return inspect.getsource(spec.target).encode()
    except (OSError, TypeError):
        return b""  # it was typed into a shell, or made by a program


def _class_routes(
    cls: Any, name: str, topics: Sequence[str]
) -> tuple[tuple[Route, ...], tuple[str, ...]]:
    if Agent not in cls.__mro__:
        raise InvalidParams(
            f"agent {name!r}: {cls.__name__} is not an Agent",
            field="agent",
            hint="derive it from loom.Agent, or decorate an async function (ctx, event)",
        )
    _check_made_without_arguments(cls, name)
    routes: list[Route] = []
    methods: list[str] = []
    attributes = _in_source_order(cls)
    for attribute, value in attributes.items():
        if isinstance(value, MethodCapability):
            methods.append(attribute)
            continue
        patterns: tuple[str, ...] = getattr(value, _MARK, ())
        accepts = _accepts(value, name, skip=1) if patterns else None
        routes.extend(Route(pattern=p, attribute=attribute, accepts=accepts) for p in patterns)
    fallback = attributes["on_event"]
    if fallback is not vars(Agent)["on_event"]:
        accepts = _accepts(fallback, name, skip=1)
        routes.append(Route(pattern=">", attribute="on_event", accepts=accepts))
        return tuple(routes), tuple(methods)
    for topic in topics:
        if not any(r.pattern == topic or matches(r.pattern, topic) for r in routes):
            raise InvalidParams(
                f"agent {name!r} listens to {topic!r} and has no handler for it",
                field="topics",
                hint=f"add on_event, or a method with @loom.on({topic!r})",
            )
    return tuple(routes), tuple(methods)


def _check_made_without_arguments(cls: Any, name: str) -> None:
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise InvalidParams(
            f"agent {name!r} cannot be made: {error}",
            field="agent",
            hint="its __init__ takes no arguments; make what it needs in on_start",
        ) from None


def _in_source_order(cls: type[Any]) -> dict[str, Any]:
    """Return the attributes of ``cls`` in source order, its own before those of its bases."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        for attribute, value in vars(base).items():
            found.setdefault(attribute, value)
    return found


def _function_routes(fn: Handler, name: str, topics: Sequence[str]) -> tuple[Route, ...]:
    patterns = getattr(fn, _MARK, ())
    if patterns:
        raise InvalidParams(
            f"agent {name!r} is a function and has @loom.on",
            field="topics",
            hint="give the filters as topics=[…]",
        )
    if not topics:
        raise InvalidParams(
            f"agent {name!r} listens to nothing", field="topics", hint='give topics=["…"]'
        )
    return (Route(pattern=">", attribute=None, accepts=_accepts(fn, name, skip=0)),)


def _accepts(fn: Callable[..., Any], name: str, *, skip: int) -> Any:
    """Return the T of the handler's ``Event[T]``, None where it takes anything."""
    if not inspect.iscoroutinefunction(fn):
        raise InvalidParams(
            f"agent {name!r}: {getattr(fn, '__qualname__', fn)} is not an async function",
            field="handler",
            hint="write `async def`",
        )
    parameters = list(inspect.signature(fn).parameters.values())[skip:]
    if len(parameters) != 2:
        raise InvalidParams(
            f"agent {name!r}: {fn.__qualname__} takes {len(parameters)} arguments",
            field="handler",
            hint="write `async def on_event(self, ctx: loom.Context, event: loom.Event)`",
        )
    event = parameters[1]
    if event.annotation is inspect.Parameter.empty:
        return None
    hint = resolved(fn, {event.name: event.annotation}, f"agent {name!r}")[event.name]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not Event or not arguments:
        return None
    accepted = arguments[0]
    return None if accepted is Any or accepted is object else accepted


def _state_type(target: Any) -> type[Any] | None:
    for base in getattr(target, "__orig_bases__", ()):
        if typing.get_origin(base) is Agent:
            declared = typing.get_args(base)[0]
            if declared is type(None) or isinstance(declared, TypeVar):
                return None
            if declared in _IMMUTABLE:
                raise InvalidParams(
                    f"a state of type {declared.__name__} could not be changed",
                    field="state",
                    hint="declare a class with attributes, such as a Pydantic model",
                )
            return declared
    return None


def capabilities_of(agent: object, methods: Sequence[str]) -> list[Capability[..., Any]]:
    """Return the capabilities that an agent's object offers with its methods."""
    return [cast("Capability[..., Any]", getattr(agent, method)) for method in methods]
