"""Capabilities: functions that agents offer by name, with JSON Schemas made from their type hints.

A decorated function stays a function: calling it is a plain local call. ``fn.bind(…)`` makes a
typed, not yet made call for ``ctx.tool``.
"""

import contextlib
import inspect
import types
import typing
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from typing import Any, Final, Generic, Literal, ParamSpec, TypeAlias, TypeVar, cast, overload

from loom.checks import check_number, check_seconds, check_text, check_texts
from loom.directory import EFFECTS, Effect
from loom.errors import InvalidParams, NotSupported
from loom.topics import check_capability_name

if typing.TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Isolation: TypeAlias = Literal["auto", "thread", "process"]
_ISOLATIONS: Final = ("auto", "thread", "process")
EFFECT_ID: Final = "effect_id"  # a parameter of this name receives the effect's id


@dataclass(frozen=True, slots=True)
class Bound(Generic[R_co]):
    """A call that has not been made.

    A capability's name and its arguments, for ``ctx.tool`` or ``ctx.stream``.
    """

    capability: "Capability[..., Any]"
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the capability."""
        return self.capability.name


@dataclass(frozen=True, slots=True)
class Done(Generic[R_co]):
    """What a probe says of an effect that was done.

    Attributes:
        result: What the capability would have returned; calls with the effect's key are given it.
    """

    result: R_co


class NotDone:
    """What a probe says of an effect that was not done: a call with its key does it."""


Probe: TypeAlias = Callable[..., Awaitable["Done[R] | NotDone | None"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a capability promises, apart from its schemas. Times in seconds."""

    name: str
    effect: Effect = "unsafe"
    timeout: float = 30.0
    version: str = "1"
    cost: float = 0.0
    tags: tuple[str, ...] = ()
    needs_approval: bool = False
    isolation: Isolation = "auto"

    def __post_init__(self) -> None:
        check_capability_name(self.name)
        if self.effect not in EFFECTS:
            raise InvalidParams(
                f"{self.effect!r} is not an effect class",
                field="effect",
                hint=f"use one of {', '.join(EFFECTS)}",
            )
        check_seconds(self.timeout, "timeout")
        check_text(self.version, "version")
        check_number(self.cost, "cost")
        if self.needs_approval:
            raise NotSupported(
                "approvals are not built yet", field="needs_approval", hint="leave it out"
            )
        if self.isolation not in _ISOLATIONS:
            raise InvalidParams(
                f"{self.isolation!r} is not an isolation",
                field="isolation",
                hint=f"use one of {', '.join(_ISOLATIONS)}",
            )


class Capability(Generic[P, R]):
    """A function offered under a name.

    ``R`` is its result, for an async generator a list of its chunks.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        terms: Terms,
        *,
        owner: object | None = None,
        probe: "Probe[R] | None" = None,
    ) -> None:
        self.terms = terms
        self.fn = fn
        self.probe_fn: Probe[R] | None = probe
        self._owner = owner
        update_wrapper(self, fn)
        _check_parameters(fn, terms.name)
        if terms.isolation == "process":
            _check_isolation(fn, terms.name, is_method=owner is not None)

    @property
    def name(self) -> str:
        """The name it is called by."""
        return self.terms.name

    @property
    def version(self) -> str:
        """The version of it that this is."""
        return self.terms.version

    @property
    def streams(self) -> bool:
        """Whether it answers in chunks."""
        return inspect.isasyncgenfunction(self.fn)

    @property
    def is_async(self) -> bool:
        """Whether it runs on the event loop."""
        return inspect.iscoroutinefunction(self.fn) or self.streams

    @property
    def is_isolated(self) -> bool:
        """Whether it runs in processes of its own."""
        return self.terms.isolation == "process"

    @property
    def description(self) -> str:
        """The first paragraph of the docstring."""
        return summary(self.fn)

    @property
    def usage(self) -> str:
        """How it is called, for people."""
        return f"{self.name} takes {self._signature}"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function itself: no engine, no checks. For unit tests and local use."""
        return self._function(*args, **kwargs)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Bound[R]:
        """Return the call with these arguments, to be made with ``await ctx.tool(…)``.

        Raises:
            InvalidParams: the arguments do not fit the function's signature.
        """
        unknown = next((key for key in kwargs if key not in self._signature.parameters), None)
        if unknown is not None:
            raise InvalidParams(
                f"{self.name} has no argument {unknown!r}", field="args", hint=self.usage
            )
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidParams(f"{self.name}: {error}", field="args", hint=self.usage) from None
        return Bound(self, dict(bound.arguments))

    def probe(self, fn: "Probe[R]") -> "Probe[R]":
        """Register what tells whether an effect of this capability was done: ``fn(effect_id)``.

        It is asked when nobody knows what became of a call: after a crash, a lost provider or a
        timeout, at most 10 seconds each time. It returns ``loom.Done(result)``,
        ``loom.NotDone()``, or None where it cannot tell.

        Raises:
            InvalidParams: the capability is not declared probeable, or ``fn`` is not async.
        """
        _check_probe(fn, self.terms)
        self.probe_fn = fn
        return fn

    @property
    def prober(self) -> "Probe[R] | None":
        """The registered probe, bound to its agent where it is a method."""
        if self.probe_fn is None or self._owner is None:
            return self.probe_fn
        return cast("Probe[R]", self.probe_fn.__get__(self._owner))

    # -- schemas ----------------------------------------------------------------------------------

    @cached_property
    def arguments(self) -> "type[BaseModel]":
        """The Pydantic model that arguments are checked with.

        Its fields are numbered and have the parameters' names as aliases, so that a parameter may
        be called ``json`` or ``_x``.
        """
        from pydantic import ConfigDict, Field, create_model
        from pydantic.errors import PydanticSchemaGenerationError

        fields: dict[str, Any] = {}
        hints = self._hints
        for number, (name, parameter) in enumerate(self._signature.parameters.items()):
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[f"p{number}"] = (hints.get(name, Any), Field(default, alias=name))
        config = ConfigDict(extra="forbid")
        try:
            return create_model(f"{self.fn.__name__}_arguments", __config__=config, **fields)
        except PydanticSchemaGenerationError as error:
            raise self._without_schema(error) from None

    @cached_property
    def result(self) -> "TypeAdapter[Any]":
        """What results (for a stream: chunks) are checked with."""
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticSchemaGenerationError

        hint = self._hints.get("return", Any)
        if self.streams:
            parts = typing.get_args(hint)
            hint = parts[0] if parts else Any
        try:
            return TypeAdapter(hint)
        except PydanticSchemaGenerationError as error:
            raise self._without_schema(error) from None

    def _without_schema(self, error: Exception) -> InvalidParams:
        return InvalidParams(
            f"{self.name} has a type hint without a schema: {str(error).splitlines()[0]}",
            field="hints",
            hint="use builtins, dataclasses or Pydantic models",
        )

    @cached_property
    def result_is_bytes(self) -> bool:
        """Whether the result is bytes, which travel as they are."""
        return self._hints.get("return") is bytes

    @property
    def takes_nothing(self) -> bool:
        """Whether callers can give it no arguments."""
        return not self._signature.parameters

    @cached_property
    def wants_effect_id(self) -> bool:
        """Whether the function takes the effect's id."""
        return EFFECT_ID in inspect.signature(self.fn).parameters

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments, an object."""
        return self.arguments.model_json_schema()

    def output_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the result, for a stream of one chunk."""
        return self.result.json_schema(mode="serialization")

    def keywords(self, arguments: "BaseModel", effect_id: str | None) -> dict[str, Any]:
        """Return what to call the function with."""
        keywords = {
            name: getattr(arguments, f"p{number}")
            for number, name in enumerate(self._signature.parameters)
        }
        if self.wants_effect_id:
            keywords[EFFECT_ID] = effect_id
        return keywords

    @property
    def _function(self) -> Callable[..., Any]:
        return self.fn if self._owner is None else self.fn.__get__(self._owner)

    @property
    def function(self) -> Callable[..., Any]:
        """The function to run, bound to its agent where it is a method."""
        return self._function

    @cached_property
    def _hints(self) -> dict[str, Any]:
        annotations: dict[str, Any] = getattr(self.fn, "__annotations__", {})
        return resolved(self.fn, annotations, self.name)

    @cached_property
    def _signature(self) -> inspect.Signature:
        """What callers may pass: ``self`` and ``effect_id`` are left out."""
        signature = inspect.signature(self._function)
        kept = [p for p in signature.parameters.values() if p.name != EFFECT_ID]
        return signature.replace(parameters=kept)


def _check_parameters(fn: Callable[..., Any], name: str) -> None:
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidParams(
                f"{name}: parameter {parameter.name!r} cannot be given by name",
                field=parameter.name,
                hint="arguments travel by name: leave out the `/`",
            )
        if type(parameter.default).__module__.startswith("pydantic"):
            raise InvalidParams(
                f"{name}: the default of {parameter.name!r} is a Field",
                field=parameter.name,
                hint="write Annotated[int, Field(gt=3)] = 5",
            )
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidParams(
                f"{name}: parameter {parameter.name!r} takes any number of values",
                field=parameter.name,
                hint="name each parameter; use a list or a dict for many values",
            )


def _check_probe(fn: Callable[..., Any], terms: Terms) -> None:
    if terms.effect != "probeable":
        raise InvalidParams(
            f"{terms.name} is {terms.effect}: only a probeable capability has a probe",
            field="effect",
            hint='declare effect="probeable"',
        )
    if not inspect.iscoroutinefunction(fn):
        raise InvalidParams(
            f"the probe of {terms.name} is not async",
            field="probe",
            hint="write async def probe(effect_id: str)",
        )


def _check_isolation(fn: Callable[..., Any], name: str, *, is_method: bool) -> None:
    """Refuse what another process could not run, because it could not find it or answer in full."""
    why = None
    if is_method:
        why = "is a method: its agent is in this process"
    elif inspect.isasyncgenfunction(fn):
        why = "is a generator: a process answers once"
    elif not getattr(fn, "__qualname__", "").isidentifier():
        why = "is not at the top level of its module, where another process could find it"
    if why is not None:
        raise InvalidParams(
            f"{name} cannot have a process of its own: the function {why}",
            field="isolation",
            hint='use a plain or async function of a module, or isolation="thread"',
        )


def resolved(fn: Callable[..., Any], annotations: dict[str, Any], what: str) -> dict[str, Any]:
    """Return annotations of ``fn`` as types; those that are text are looked up where it stands.

    Raises:
        InvalidParams: a name in one of them means nothing at run time.
    """
    holder = types.SimpleNamespace(__annotations__=annotations)
    scope = getattr(fn, "__globals__", {})
    try:
        return typing.get_type_hints(holder, scope, _captured(fn), include_extras=True)
    except NameError as error:
        raise InvalidParams(
            f"{what}: a type hint cannot be read: {error}",
            field="hints",
            hint="define the type in the module, or import it outside TYPE_CHECKING",
        ) from None


def _captured(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the variables of enclosing functions that ``fn`` uses and that have a value yet."""
    captured: dict[str, Any] = {}
    if inspect.isfunction(fn):
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # it is assigned later
                captured[name] = cell.cell_contents
    return captured


def summary(target: Any) -> str:
    """Return the first paragraph of the target's own docstring, on one line."""
    return inspect.cleandoc(target.__doc__ or "").split("\n\n")[0].replace("\n", " ")


class MethodCapability(Generic[P, R]):
    """A capability declared on a method of an Agent; on an instance it is a Capability."""

    def __init__(self, fn: Callable[..., Any], terms: Terms) -> None:
        if terms.isolation == "process":
            _check_isolation(fn, terms.name, is_method=True)
        self.fn = fn
        self.terms = terms
        self._attribute = fn.__name__
        self._probe: Probe[R] | None = None
        self.__doc__ = fn.__doc__

    def probe(self, fn: "Probe[R]") -> "Probe[R]":
        """Register ``async def fn(self, effect_id)``, as ``Capability.probe`` does.

        Raises:
            InvalidParams: the capability is not declared probeable, or ``fn`` is not async.
        """
        _check_probe(fn, self.terms)
        self._probe = fn
        return fn

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    def __get__(self, instance: object | None, owner: type | None = None) -> Capability[P, R]:
        if instance is None:
            return Capability(self.fn, self.terms, probe=self._probe)
        bound: Capability[P, R] = Capability(self.fn, self.terms, owner=instance, probe=self._probe)
        instance.__dict__[self._attribute] = bound  # made once per instance
        return bound


class FunctionDecorator:
    """What ``@app.capability(…)`` returns.

    It takes async generators, async functions and plain functions.
    """

    def __init__(self, terms: Terms, keep: Callable[[Capability[..., Any]], None]) -> None:
        self._terms = terms
        self._keep = keep

    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[R]]) -> Capability[P, list[R]]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]]) -> Capability[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Capability[P, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> Capability[..., Any]:
        """Make the capability and keep it."""
        made: Capability[..., Any] = Capability(fn, self._terms)
        self._keep(made)
        return made


class MethodDecorator:
    """What ``@loom.capability(…)`` returns, for methods of an Agent."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    @overload
    def __call__(
        self, fn: Callable[typing.Concatenate[Any, P], AsyncIterator[R]]
    ) -> MethodCapability[P, list[R]]: ...
    @overload
    def __call__(
        self, fn: Callable[typing.Concatenate[Any, P], Awaitable[R]]
    ) -> MethodCapability[P, R]: ...
    @overload
    def __call__(self, fn: Callable[typing.Concatenate[Any, P], R]) -> MethodCapability[P, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> MethodCapability[..., Any]:
        """Make the capability."""
        return MethodCapability(fn, self._terms)


def capability(
    name: str,
    *,
    effect: Effect = "unsafe",
    timeout: float = 30.0,
    version: str = "1",
    cost: float = 0.0,
    tags: tuple[str, ...] = (),
    needs_approval: bool = False,
    isolation: Isolation = "auto",
) -> MethodDecorator:
    """Offer a method of an Agent as a capability.

    ``timeout`` in seconds, ``cost`` in your own unit per call.

    Raises:
        InvalidParams: the name, effect class or timeout is wrong.
        NotSupported: it asks for what is not built yet.
    """
    return MethodDecorator(
        Terms(
            name=name,
            effect=effect,
            timeout=timeout,
            version=version,
            cost=cost,
            tags=check_texts(tags, "tags"),
            needs_approval=needs_approval,
            isolation=isolation,
        )
    )
