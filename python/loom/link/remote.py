"""The engine of a node, over the Bridge: the same interface as the one in this process.

What changes something at the node returns at once and is answered by a notice; what is asked is a
ticket, and the answer a notice, too. The compiled library dials, resumes and resends by itself.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, cast

from loom.address import Trust
from loom.codec import decode, encode
from loom.envelope import Envelope, Receipt
from loom.errors import CODES, Cancelled, LoomError, NotSupported, Unavailable
from loom.limits import CONNECT_SECONDS, STOP_SECONDS
from loom.link.clock import Clock, SystemClock
from loom.link.link import Link, Parked, error_from_detail, refused
from loom.link.state import LinkEvent, LinkState

if TYPE_CHECKING:
    from loom._engine import Delivery, Session
    from loom.link.link import Emit

    _Emit = Callable[[int, Delivery | None, str, bytes, int], Receipt | int | None]

_logger = logging.getLogger("loom.link")
_LEVELS: Final[Mapping[LinkState, int]] = {
    "connecting": logging.INFO,
    "up": logging.INFO,
    "lost": logging.WARNING,
    "closed": logging.INFO,
}


class Asking(Protocol):
    """What a remote session is asked: each returns a ticket; ACCEPTED brings the answer."""

    def states(self, sender: int, lane: str | None, /) -> int:
        """Ask for the states of an agent, or that of one lane: lanes and payloads."""
        ...

    def memories(self, key: str | None, /) -> int:
        """Ask for the values of the memory, or one: keys, payloads, until when in ms."""
        ...

    def directory(self, kind: str, /) -> int:
        """Ask for what is registered: JSON each."""
        ...

    def read(self, filters: Sequence[str], start: str | int, /) -> int:
        """Ask for durable events: some, where to go on, whether there were no more."""
        ...

    def stats(self) -> bytes:
        """Return the counters of the connection as JSON."""
        ...

    def join(self, seconds: float, /) -> int:
        """Wait until what was sent has been taken; return how many frames were not. Blocks."""
        ...


class RemoteLink(Link):
    """A link to a node, whose states and memory others use, too.

    ``session`` has the methods of a local one, and those of ``Asking``.

    Handles are numbers of the client's own: ACCEPTED or REFUSED with a handle ends its
    registration.
    """

    is_shared = True

    def __init__(
        self,
        session: "Session",
        clock: Clock,
        refusal: type[Exception],
        *,
        namespace: str,
        name: str,
        url: str,
    ) -> None:
        self._name = name
        self._url = url
        super().__init__(session, clock, refusal, namespace)
        self.state = "connecting"
        self._detail: Mapping[str, Any] = {"state": "connecting", "node": url}
        self.was_up = False
        self._changed = asyncio.Event()

    @property
    def asking(self) -> Asking:
        """The session, as one that is asked."""
        return cast("Asking", self.session)

    def _emit(self) -> "Emit":
        emit = cast("_Emit", self.session.emit)
        parked, future = self._parked, self._loop.create_future

        def taken(
            sender: int, turn: "Delivery | None", topic: str, data: bytes, qos: int
        ) -> Receipt | None:
            ticket = emit(sender, turn, topic, data, qos)
            if isinstance(ticket, int):
                parked[ticket] = waits = future()
                raise Parked(ticket, waits)
            return ticket

        return taken

    # -- the state --------------------------------------------------------------------------------

    async def connected(self) -> None:
        """Wait until the node has taken this session, at most ``CONNECT_SECONDS``.

        Raises:
            Unavailable: nobody answers there.
            LoomError: the node refused it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                while self.state not in {"up", "closed"} and "code" not in self._detail:
                    self._changed.clear()
                    await self._changed.wait()
        if self.error is not None:
            raise self.error
        if "code" in self._detail:  # one side does not trust the other: time will not help
            raise error_from_detail(int(self._detail["code"]), encode(self._detail))
        if self.state != "up":
            reason = self._detail.get("reason")
            hint = "`loom up` starts one; check url and LOOM_URL"
            if reason and self._url.startswith(("loom://", "ws://")):
                hint += "; if the node has TLS, it is looms:// or wss://"
            raise Unavailable(
                f"no node answers at {self._url}" + (f": {reason}" if reason else ""),
                field="url",
                limit="connect_seconds",
                hint=hint,
            )

    def on_link(self, _: int, __: int, payload: Any) -> None:
        """Take a notice about the connection: its detail as JSON."""
        detail: dict[str, Any] = decode(payload)
        state: str = detail["state"]
        if state == "refused":
            number = int(detail.get("code") or CODES["UNAVAILABLE"])
            self.error = error_from_detail(number, payload)
            if number == CODES["UNAUTHENTICATED"] and self.error.field is None:
                self.error.field = "token"
                self.error.hint = "`loom token list` at the node shows which are good, and when "
                self.error.hint += "they end; `loom token create` makes one"
            self._end_waiting(self.error)
            state, detail = "closed", {**detail, "state": "closed"}
        self._turn(cast("LinkState", state), {"node": self._url, **detail})
        if self.error is not None:
            for end in list(self._ended.values()):
                end()
            self._ended.clear()

    def _turn(self, state: LinkState, detail: Mapping[str, Any]) -> None:
        self._detail = detail
        self.namespace = detail.get("namespace") or self.namespace
        if state == self.state:
            self._changed.set()
            if "code" in detail and self.was_up:
                _logger.warning("the link of %s to %s is %s: %s", *self._said(state, detail))
            return
        self.state = state
        self.was_up = self.was_up or state == "up"
        self.changes += 1
        self._changed.set()
        # what keeps a link from coming up is raised where it is waited for
        is_news = self.error is not None and self.was_up
        level = logging.WARNING if is_news else _LEVELS[state]
        _logger.log(level, "the link of %s to %s is %s%s", *self._said(state, detail))
        event = LinkEvent(state, detail, self.namespace, self._name)
        for hear in list(self._told):
            hear(event)

    def _said(self, state: str, detail: Mapping[str, Any]) -> tuple[str, str, str, str]:
        more = ""
        if self.error is not None:
            more = f": {self.error.message}"
        elif detail.get("resumed"):
            more = " again, with all that was under way"
        elif detail.get("missed_from") is not None:
            more = f"; events from {detail['missed_from']} on may be missing"
        elif detail.get("reason"):
            more = f": {detail['reason']}"
        return self._name, self._url, state, more

    def stats(self) -> dict[str, Any]:
        """Return how it stands, and the counters of the connection."""
        own: dict[str, Any] = decode(self.asking.stats())
        return {**super().stats(), **own, "node": self._url}

    # -- asking -----------------------------------------------------------------------------------

    async def registered(self, handle: int) -> None:
        """Wait until the node has done what was asked under this handle."""
        await self.answered(handle)

    async def states(self, sender: int, lane: str | None = None) -> list[tuple[str, bytes]]:
        """Return the states of an agent, or that of one lane, as the node has them now."""
        return await self.answered(self.asking.states(sender, lane))

    async def memories(self, key: str | None = None) -> list[tuple[str, bytes, int | None]]:
        """Return the values of the memory, or that of one key, as the node has them now."""
        return await self.answered(self.asking.memories(key))

    async def answered(self, ticket: int) -> Any:
        """Wait for the answer to a ticket.

        Raises:
            LoomError: the node refused it, or the link was closed.
        """
        if self._closed or self.error is not None:
            raise self.error or Cancelled("the link to the node was closed")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._parked[ticket] = answer
        self.look()
        try:
            return await answer
        finally:
            self._parked.pop(ticket, None)
            self._tell_settled()

    # -- inside -----------------------------------------------------------------------------------

    def _by_kind(self) -> Any:
        from loom import _engine as engine

        work, notices = super()._by_kind()
        return work, {**notices, engine.NOTICE_LINK: self.on_link}

    def _ring_within(self, timeout: float) -> None:
        """Do nothing: the thread that carries the session ends what is due."""

    def _on_accepted(self, ticket: int, _: int, receipt: Any) -> None:
        taken = self._parked.pop(ticket, None)
        if taken is not None and not taken.done():
            taken.set_result(receipt)
        if not self._parked:
            self._tell_settled()

    def _on_refused(self, ticket: int, code: int, detail: Any) -> None:
        if ticket not in self._parked:  # it was registered before, and is not taken again
            error = error_from_detail(code, detail)
            _logger.error("the node refused what it had taken before: %s", error)
        super()._on_refused(ticket, code, detail)
        self._parked.pop(ticket, None)
        if not self._parked:
            self._tell_settled()

    def _end_waiting(self, error: LoomError) -> None:
        for waiter in list(self._waiters.values()):
            waiter.end(error, b"")
        self._waiters.clear()
        for taken in list(self._parked.values()):
            if not taken.done():
                taken.set_exception(error)

    def close(self) -> None:
        """Detach; what was sent goes out first."""
        super().close()
        self._turn("closed", {"state": "closed", "node": self._url, "reason": "the app stopped"})


class _Now:
    """The time of this machine; deadlines of remote deliveries are in it."""

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    def advance(self, seconds: float, /) -> None:
        """Refuse: real time moves by itself."""
        raise NotSupported("only a virtual clock can be advanced", field="clock")


class Remote:
    """The engine of a node.

    Args:
        url: where it is, checked.
        token: the credential.
        keep: seconds that the node keeps the session without a connection; 0: as it does.
        trust: for TLS, whom it trusts and what it shows.
    """

    is_remote = True
    has_directory = True  # the node says what its log can do
    is_recording = True  # where the node does not record, it reads over what it is told
    is_logging = False  # it waits at the node

    def __init__(self, url: str, token: str, keep: float = 0.0, trust: Trust | None = None) -> None:
        self.url = url
        self._files = None if trust is None else trust.files
        self._token = token
        self._keep = keep
        self.clock: Clock = SystemClock(_Now())
        self._link: RemoteLink | None = None

    async def open(self, namespace: str) -> None:
        """Do nothing: the node opens the log of a namespace when a session comes."""

    def attach(self, namespace: str, name: str) -> RemoteLink:
        """Return a link that dials; an empty namespace is that of the token.

        Raises:
            LoomError: the url or a file cannot be used.
        """
        from loom._engine import EngineError, RemoteSession

        try:
            now = self.clock.now()
            session = RemoteSession(
                self.url, self._token, name, namespace, now, self._keep, self._files
            )
        except EngineError as error:
            raise refused(error) from None
        made = RemoteLink(
            cast("Session", session),
            self.clock,
            EngineError,
            namespace=namespace,
            name=name,
            url=self.url,
        )
        self._link = made
        return made

    @property
    def link(self) -> RemoteLink:
        """The one link: a process asks its node through it."""
        if self._link is None:
            raise NotSupported("nothing is attached yet", field="url")
        return self._link

    async def read(
        self, namespace: str, filters: Sequence[str], start: str | int
    ) -> tuple[Sequence[Envelope], str, bool]:
        """Read durable events of the session's namespace, as ``Local.read`` does."""
        return await self.link.answered(self.link.asking.read(list(filters), start))

    async def directory(self, namespace: str, kind: str) -> Sequence[bytes]:
        """Return what is registered: ``kind`` is "agent" or "capability"."""
        return await self.link.answered(self.link.asking.directory(kind))

    def stats(self) -> dict[str, Any]:
        """Return the counters of the link; those of the node are its ``loom.node.stats``."""
        return {}

    def ledger(self, link: Link, namespace: str) -> "RemoteLedger":
        """Return the effects of the namespace."""
        return RemoteLedger(link)

    def routes(self, link: Link, namespace: str) -> "RemoteRoutes":
        """Return the selection table, as this process has written it."""
        return RemoteRoutes(link)

    async def close(self) -> None:
        """Wait until the node has taken what was sent, at most ``STOP_SECONDS``.

        Where the link is down it is dialled for that. What is left is told in the log.
        """
        if self._link is None or not self._link.was_up:
            return  # the node has nothing of it
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        join = self._link.asking.join

        def work() -> None:
            left = join(STOP_SECONDS)
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(_tell, done, left)

        threading.Thread(target=work, name="loom link", daemon=True).start()
        if left := await done:
            ended = self._link.error
            why = "" if ended is None else f" before it ended the session ({ended.message})"
            _logger.error(
                "the node at %s has not confirmed the last %d frames%s: events, answers and ends "
                "of turns in them may be lost",
                self.url,
                left,
                why,
            )


def _tell(done: "asyncio.Future[int]", left: int) -> None:
    if not done.done():
        done.set_result(left)


def open_remote(url: str, token: str, *, keep: float = 0.0, trust: Trust | None = None) -> Remote:
    """Return the engine of a node; nothing is dialled before somebody attaches."""
    return Remote(url, token, keep, trust)


class RemoteLedger:
    """The effects of a namespace at a node: settled here, looked at by ``loom.node.effects``."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def page(self, *, unknown: bool, after: str | None) -> tuple[Sequence[Mapping[str, Any]], bool]:
        """Refuse: the node has to be asked, and that takes time."""
        self._refuse()

    def find(self, effect: str) -> tuple[Mapping[str, Any], bytes | None] | None:
        """Refuse, as ``page`` does."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotSupported(
            "the effects of a node are not looked at from here",
            field="effects",
            hint='await ctx.tool("loom.node.effects.list"), or `loom effects list --url …`',
        )

    async def settle(self, effect: str, result: bytes | None, note: str) -> None:
        """Say what became of an unknown effect: done with ``result``; None: not done."""
        self._link.check_thread()
        try:
            ticket = self._link.session.resolve(effect, result, note)
        except self._link.refusal as error:
            raise self._link.translate(error, payload="result") from None
        await self._link.parked(ticket, payload="result")


class RemoteRoutes:
    """The selection table of a namespace, as this process has written it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._written: dict[str, dict[str, float]] = {}

    def write(self, capability: str, weights: dict[str, float] | None) -> None:
        """Set the weights of a capability's providers at the node, None: forget them."""
        table = None if weights is None else list(weights.items())
        try:
            self._link.session.route(capability, table)
        except self._link.refusal as error:
            raise self._link.translate(error) from None
        if weights is None:
            self._written.pop(capability, None)
        else:
            self._written[capability] = dict(weights)

    def read(self) -> dict[str, dict[str, float]]:
        """Return all weights that were written here."""
        return {name: dict(weights) for name, weights in self._written.items()}
