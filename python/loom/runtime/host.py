"""What all Contexts of one agent (or of the app itself) share."""

import asyncio
import logging
import random as _random
import reprlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from loom.capabilities import Capability
from loom.codec import encode
from loom.errors import (
    CODES,
    Exhausted,
    Fenced,
    Indeterminate,
    LoomError,
    NotSupported,
    ProviderUnavailable,
)
from loom.limits import ERROR_DETAIL_BYTES, STATES
from loom.link import Engine, Link
from loom.middleware import Middleware
from loom.protocols import Memory, Model
from loom.runtime.gauges import Gauges

if TYPE_CHECKING:
    from loom.agent import AgentSpec
    from loom.link.link import Emit, Session
    from loom.runtime.keeping import States
    from loom.runtime.steps import Steps


_LONGEST_PAUSE = 2**53 / 1000  # seconds; as milliseconds the most that every JSON reader can count


@dataclass(slots=True, kw_only=True)
class Services:
    """What one running app offers its agents."""

    engine: Engine
    link: Link
    namespace: str
    memory: Memory
    model: Callable[[], Model]
    random: _random.Random
    start: "Callable[[AgentSpec], Awaitable[None]]"  # an agent that comes while the app runs
    steps: "Steps"  # through which Contexts read what is outside their event
    gauges: Gauges = field(default_factory=Gauges)
    timeouts: dict[tuple[str, str | None], float] = field(
        default_factory=dict[tuple[str, str | None], float]
    )  # what this app's capabilities declare, by name and version; None: the longest of a name


@dataclass(slots=True, kw_only=True)
class Host:
    """One sender: an agent of a running app, or the app itself."""

    services: Services
    sender: int
    name: str
    log: logging.Logger
    middleware: tuple[Middleware, ...] = ()
    state_type: type[Any] | None = None
    states: dict[str, Any] = field(default_factory=dict[str, Any])
    kept: "States | None" = None  # where the log keeps them
    link: Link = field(init=False)  # these three are the services', at hand for the hot path
    session: "Session" = field(init=False)
    emit: "Emit" = field(init=False)

    def __post_init__(self) -> None:
        self.link = self.services.link
        self.session = self.link.session
        self.emit = self.link.emit

    def fence(self) -> None:
        """Let the contexts of this host publish and call no more: another object goes on."""
        self.session = cast("Session", _Fenced(self.name, self.session))
        self.emit = self.session.emit

    def state_of(self, lane: str) -> Any:
        """Return the state of one key or thread, at first made by its type without arguments.

        Raises:
            NotSupported: the agent declared no state.
            Exhausted: the agent keeps too many states in process.
        """
        if self.state_type is None:
            raise NotSupported(
                f"agent {self.name!r} declared no state",
                field="state",
                who=self.name,
                hint="declare it: class Planner(loom.Agent[MyState])",
            )
        state = self.states.get(lane)
        if state is None:
            if len(self.states) >= STATES:
                raise Exhausted(
                    f"agent {self.name!r} keeps {STATES} states in process",
                    field="state",
                    limit="states",
                    who=self.name,
                    hint="give events fewer keys, or keep what must stay in ctx.memory",
                )
            state = self.states[lane] = self.state_type()
        return state


class _Fenced:
    """The session as an agent's object sees it that has been replaced after a crash."""

    def __init__(self, agent: str, session: "Session") -> None:
        self._agent = agent
        self.fail = session.fail  # what it still runs may end; the engine knows its leases

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._refuse

    def _refuse(self, *_: Any) -> Any:
        raise Fenced(
            f"agent {self._agent!r} crashed, and another object goes on: this context is over",
            field="ctx",
            who=self._agent,
            hint="cancel in on_stop what on_start has set going",
        )


class Raised(Exception):
    """What user code raised in another process: its type's name, and its stack for the log."""

    def __init__(self, kind: str, stack: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.stack = stack

    def __str__(self) -> str:
        return f"{self.kind} in a worker process\n{self.stack}"


def error_detail(error: LoomError, *, who: str | None = None) -> bytes:
    """Return what of ``error`` may leave the process, whatever user code has put into it.

    No stack, and at most ``ERROR_DETAIL_BYTES``: each text is cut to its share.
    """
    told: dict[str, object] = {
        "message": _cut(error.message, 6),
        "field": _cut(error.field, 2),
        "limit": _cut(error.limit, 1),
        "hint": _cut(error.hint, 4),
        "who": _cut(error.who or who, 2),
        "retry_after_ms": _millis(error.retry_after),
        "retry": None if error.retry == error.RETRY else bool(error.retry),
    }  # the last sixteenth is for the names and the two that are no texts
    return encode({name: value for name, value in told.items() if value is not None})


def _cut(text: object, sixteenths: int) -> str | None:
    """Return as much of a text as fits into its share, as JSON."""
    if text is None:
        return None
    share = ERROR_DETAIL_BYTES * sixteenths // 16
    cut = (text if isinstance(text, str) else reprlib.repr(text))[:share]
    cut = cut.encode("utf-8", "backslashreplace").decode()[:share]  # a half of a pair is no text
    while len(encode(cut)) - 2 > share:  # two quotes
        cut = cut[: len(cut) * 7 // 8]
    return cut


def _millis(seconds: float | None) -> int | None:
    """Return a pause in milliseconds; None if it is none that a program could wait for."""
    if seconds is None or not 0 <= seconds < _LONGEST_PAUSE:
        return None
    return round(seconds * 1000)


def error_number(error: LoomError) -> int:
    """Return the number of the error's code; of one that user code made up, that of INTERNAL."""
    return CODES.get(error.code, CODES["INTERNAL"])


def is_stopped(error: BaseException) -> bool:
    """Tell whether the task that runs user code was cancelled from outside."""
    task = asyncio.current_task()
    is_cancelled = task is not None and task.cancelling() > 0
    return isinstance(error, asyncio.CancelledError) and is_cancelled


def lost(capability: Capability[..., Any], how: str, *, begun: bool) -> LoomError:
    """Return what a call has come to whose function did not live to its end.

    ``begun``: the function had been called.
    """
    name = capability.name
    if capability.terms.effect == "pure" or not begun:
        return ProviderUnavailable(f"{name} {how}", who=name, retry=True)
    hint = "it may have taken effect: look before you try again"
    return Indeterminate(f"{name} {how}", who=name, hint=hint)


def tell_failure(host: Host, lease: int, told: LoomError, who: str) -> None:
    """Tell the engine that a turn or an invocation has failed, and how."""
    host.session.fail(lease, error_number(told), error_detail(told, who=who))
    host.link.look()


def log_failure(
    logger: logging.Logger, what: str, told: LoomError, error: BaseException, *, heard: bool
) -> None:
    """Log what user code raised.

    An error that was meant is one line, and none by default if somebody who waits is told. Another
    comes with its stack, which does not leave this process.
    """
    if told is not error and not isinstance(error, asyncio.CancelledError):
        logger.error("%s failed: %s", what, told, exc_info=error)
    elif heard:
        logger.info("%s failed: %s", what, told)
    else:
        logger.warning("%s failed: %s", what, told)
