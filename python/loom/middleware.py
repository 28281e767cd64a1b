"""Middleware: what an app puts around its handlers and around the calls that it makes.

One shape for both: ``async (ctx, item, next) -> result``. ``item`` is the Event that a handler is
about to get, or the Call that a context is about to make. ``await next(item)`` goes on and gives
back what the handler returns (the reply, where one was asked for) or what the call results in.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from loom.checks import check_list, check_seconds, check_text
from loom.envelope import Event
from loom.errors import HandlerError, InvalidParams, LoomError

if TYPE_CHECKING:
    from loom.context import Context


_logger = logging.getLogger("loom.middleware")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a capability before it is made; ``dataclasses.replace(call, …)`` makes another.

    ``timeout`` in seconds; ``version`` None: the newest there is; ``streamed``: the result is an
    async iterator of chunks, and ``next`` returns before the first.
    """

    name: str
    args: Mapping[str, Any]
    timeout: float
    version: str | None = None
    key: str | None = None
    streamed: bool = False

    def __post_init__(self) -> None:
        """Refuse what could not be called, in the middleware that made it."""
        check_text(self.name, "name")
        if not isinstance(self.args, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidParams(
                f"the arguments are {self.args!r}, not a mapping",
                field="args",
                hint="give args={name: value}",
            )
        check_seconds(self.timeout, "timeout")
        if self.version is not None:
            check_text(self.version, "version")
        if self.key is not None:
            check_text(self.key, "key")


Item: TypeAlias = Event[Any] | Call
Next: TypeAlias = Callable[[Item], Awaitable[Any]]
Middleware: TypeAlias = Callable[["Context[Any]", Item, Next], Awaitable[Any]]
Step: TypeAlias = Callable[["Context[Any]", Any], Awaitable[Any]]


def check_middleware(middleware: Sequence[Middleware]) -> tuple[Middleware, ...]:
    """Return the middleware as it is kept.

    Raises:
        InvalidParams: one of them is not an async callable, or they are not a sequence.
    """
    if callable(middleware):
        raise InvalidParams(
            "middleware is one function", field="middleware", hint="write middleware=[…]"
        )
    for number, one in enumerate(check_list(middleware, "middleware")):
        call = getattr(one, "__call__", None)  # noqa: B004  an object may have an async __call__
        if not inspect.iscoroutinefunction(one) and not inspect.iscoroutinefunction(call):
            raise InvalidParams(
                f"middleware {number} is {one!r}, not an async function",
                field=f"middleware.{number}",
                hint="write async def around(ctx, item, next): return await next(item)",
            )
        try:
            inspect.signature(one).bind(None, None, None)
        except TypeError as error:
            raise InvalidParams(
                f"middleware {number}, {_name(one)}, does not take (ctx, item, next): {error}",
                field=f"middleware.{number}",
                hint="write async def around(ctx, item, next): return await next(item)",
            ) from None
    return tuple(middleware)


def around(middleware: Sequence[Middleware], last: Step, kind: type[Item]) -> Step:
    """Return ``last`` with the middleware around it, the first one outermost.

    ``kind`` is what ``last`` takes; what middleware hands on must be of it.
    """

    async def checked(ctx: "Context[Any]", item: Item) -> Any:
        if not isinstance(item, kind):
            raise InvalidParams(
                f"middleware handed on {item!r}, not {kind.__name__}",
                field="item",
                hint="await next(item), with the item or another one of its kind",
            )
        return await last(ctx, item)

    step: Step = checked
    for outer in reversed(middleware):
        step = _wrapped(outer, step)
    return step


def _wrapped(outer: Middleware, inner: Step) -> Step:
    async def step(ctx: "Context[Any]", item: Item) -> Any:
        passing: list[BaseException] = []

        async def following(item: Item) -> Any:
            try:
                return await inner(ctx, item)
            except BaseException as error:
                passing[:] = [error]
                raise

        try:
            return await outer(ctx, item, following)
        except LoomError:
            raise
        except Exception as error:
            if any(error is passed for passed in passing):
                raise
            name = _name(outer)  # its own fault, and not that of the handler that it stands around
            _logger.exception("middleware %s failed", name)
            raise HandlerError(
                f"middleware {name} raised {type(error).__name__}",
                hint="see the log of its process",
            ) from None

    return step


def _name(middleware: Middleware) -> str:
    return getattr(middleware, "__qualname__", type(middleware).__qualname__)
