"""The engine in the same process."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from loom.codec import decode
from loom.config import RECORD_CODES, LogConfig
from loom.envelope import ACK_CODES
from loom.link.clock import Clock, SystemClock, VirtualClock
from loom.link.link import Link, refused

if TYPE_CHECKING:
    from loom._engine import Bridge, Delivery, Engine

Credential: TypeAlias = tuple[
    str,
    bytes,
    str,
    tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str], Sequence[str], Sequence[str]],
    int | None,
]
"""Who may attach: id, SHA-256 of the token, namespace or ``*``, six lists of filters, end in ms."""

P = ParamSpec("P")
R = TypeVar("R")


class Local:
    """An engine of this process."""

    is_remote: bool = False

    def __init__(
        self,
        engine: "Engine",
        refusal: type[Exception],
        *,
        virtual: bool,
        has_directory: bool = False,
        is_recording: bool = False,
    ) -> None:
        self._engine = engine
        self._refusal = refusal
        self.clock: Clock = VirtualClock(engine) if virtual else SystemClock(engine)
        self.has_directory: bool = has_directory  # its log outlives the process
        self.is_recording: bool = is_recording  # it keeps the turns of runs
        self._reading = 0  # threads that wait for the disk

    async def open(self, namespace: str) -> None:
        """Open the log of a namespace: what it holds is read, off the event loop.

        Raises:
            LoomError: it cannot be opened; says where and what to do.
        """
        if self.has_directory:
            await self.aside(self._engine.open, namespace)

    def attach(self, namespace: str, name: str, *, is_node: bool = False) -> Link:
        """Return a link with a session of its own.

        Call it in the event loop that will use the link. ``is_node``: it may offer what stands
        under ``loom.``.
        """
        try:
            session = self._engine.attach(namespace, name, is_node=is_node)
        except self._refusal as error:
            raise refused(error) from None
        return Link(session, self.clock, self._refusal, namespace)

    @property
    def is_logging(self) -> bool:
        """Whether the log has not answered something yet: what waits for it goes on by itself."""
        return self._reading > 0 or self._engine.is_logging

    async def read(
        self, namespace: str, filters: Sequence[str], start: str | int
    ) -> "tuple[list[Delivery], str, bool]":
        """Read durable events that match any of ``filters``, in order, off the event loop.

        Args:
            namespace: whose log.
            filters: what to read of it.
            start: "beginning", a position (with the event there), or milliseconds since 1970.

        Returns:
            Some events, the position to go on at, and whether there were no more.

        Raises:
            LoomError: the position is no longer kept, or none of this log; or it is damaged there.
        """
        return await self.aside(self._engine.read, namespace, filters, start)

    async def close(self) -> None:
        """Close the log: what was appended is synced, within ``stop_seconds``.

        Raises:
            LoomError: it could not be closed well.
        """
        if self.has_directory:
            await self.aside(self._engine.close)

    async def aside(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return what ``fn`` returns, which waits for the disk: it runs in a thread of its own.

        The thread is daemonic, so that a disk that hangs does not keep a program alive.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def tell(how: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                how(value)

        def work() -> None:
            try:
                result = fn(*args)
            except self._refusal as error:
                answer = (done.set_exception, refused(error))
            else:
                answer = (done.set_result, result)
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(tell, *answer)

        self._reading += 1
        try:
            threading.Thread(target=work, name="loom log", daemon=True).start()
            return await done
        finally:
            self._reading -= 1

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters.

        Raises:
            Fenced: this process was forked after the engine was made; so for what is asked below.
        """
        return decode(self.asked(self._engine.stats))

    def audit(self) -> dict[str, Any]:
        """Return the books of every subscription; what is queued is counted by walking."""
        return decode(self.asked(self._engine.audit))

    def serve(
        self,
        *,
        bind: Sequence[str],
        unix: Path | None,
        tls: tuple[Path, Path, Path | None] | None,
        origins: Sequence[str],
        hosts: Sequence[str],
        credentials: Sequence[Credential],
    ) -> "Served":
        """Let other processes attach.

        Args:
            bind: addresses to listen on, HOST:PORT; port 0 is any that is free.
            unix: the path of a Unix socket to listen on as well.
            tls: files of the certificate, of its key, and of who vouches for clients.
            origins: those that WebSockets may come from, besides the node's own.
            hosts: names by which it is reached, besides its addresses: HOST, or HOST:PORT.
            credentials: who may attach.

        Raises:
            LoomError: an address cannot be listened on, or a file cannot be used.
        """
        socket = None if unix is None else str(unix)
        files = None
        if tls is not None:
            files = (str(tls[0]), str(tls[1]), None if tls[2] is None else str(tls[2]))
        names = (origins, hosts)
        bridge = self.asked(self._engine.serve, bind, socket, files, names, credentials)
        return Served(self, bridge)

    def sessions(self, namespace: str | None = None) -> list[dict[str, Any]]:
        """Return who is attached, in a namespace or in all."""
        return decode(self.asked(self._engine.sessions, namespace))

    async def directory(self, namespace: str, kind: str) -> Sequence[bytes]:
        """Return what is registered: ``kind`` is "agent" or "capability"."""
        return self.asked(self._engine.directory, namespace, kind)

    def effects(
        self, namespace: str, *, unknown: bool, after: str | None
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return a page of effects behind an id, and whether there are more."""
        page, more = self.asked(self._engine.effects, namespace, unknown, after)
        return decode(page), more

    def effect(self, namespace: str, effect: str) -> tuple[dict[str, Any], bytes | None] | None:
        """Return what is known of an effect, and its result.

        Raises:
            LoomError: code INVALID_PARAMS for what is not the id of an effect.
        """
        found = self.asked(self._engine.effect, namespace, effect)
        return None if found is None else (decode(found[0]), found[1])

    def asked(self, ask: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the engine says; what it refuses is raised as a LoomError."""
        try:
            return ask(*args, **kwargs)
        except self._refusal as error:
            raise refused(error, "result") from None

    def ledger(self, link: Link, namespace: str) -> "LocalLedger":
        """Return the effects of a namespace, to be settled through ``link``."""
        return LocalLedger(self, link, namespace)

    def routes(self, link: Link, namespace: str) -> "LocalRoutes":
        """Return the selection table of a namespace, to be written through ``link``."""
        return LocalRoutes(self._engine, link, namespace)


class Served:
    """What lets other processes attach to an engine of this one."""

    def __init__(self, engine: Local, bridge: "Bridge") -> None:
        self._engine = engine
        self._bridge = bridge
        self.addresses: list[str] = bridge.addresses
        """Where it listens, HOST:PORT, as the ports are bound."""
        self.fd: int = bridge.fd
        """Readable when a session has come into a namespace that had none."""

    def opened(self) -> list[str]:
        """Return the namespaces that had sessions so far."""
        return self._bridge.opened()

    def authorize(self, credentials: Sequence[Credential]) -> None:
        """Say who may attach from now on; the sessions of others end. From any thread.

        Raises:
            LoomError: a credential is none.
        """
        self._engine.asked(self._bridge.authorize, credentials)

    def stats(self) -> dict[str, Any]:
        """Return its counters."""
        return decode(self._bridge.stats())

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, and wait until what is under way has ended; False: it was not in time.

        Raises:
            LoomError: it is over already.
        """
        return await self._engine.aside(self._bridge.drain, seconds)

    def close(self) -> None:
        """Let go of all connections at once."""
        self._bridge.close()


class LocalLedger:
    """The effects of a namespace, as the engine keeps them."""

    def __init__(self, engine: Local, link: Link, namespace: str) -> None:
        self._engine = engine
        self._link = link
        self._namespace = namespace

    def page(self, *, unknown: bool, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        """Return a page of effects behind an id, and whether there are more."""
        return self._engine.effects(self._namespace, unknown=unknown, after=after)

    def find(self, effect: str) -> tuple[dict[str, Any], bytes | None] | None:
        """Return what is known of an effect, and its result."""
        return self._engine.effect(self._namespace, effect)

    async def settle(self, effect: str, result: bytes | None, note: str) -> None:
        """Say what became of an unknown effect: done with ``result``; None: not done.

        Raises:
            LoomError: it is not there, or not unknown, or the log does not take it.
        """
        self._link.check_thread()
        try:
            ticket = self._link.session.resolve(effect, result, note)
        except self._link.refusal as error:
            raise self._link.translate(error, payload="result") from None
        await self._link.parked(ticket, payload="result")


class LocalRoutes:
    """How calls are shared among the providers of each capability, as the engine keeps it."""

    def __init__(self, engine: "Engine", link: Link, namespace: str) -> None:
        self._engine = engine
        self._link = link
        self._namespace = namespace

    def write(self, capability: str, weights: dict[str, float] | None) -> None:
        """Set the weights of a capability's providers, None: forget them.

        Raises:
            LoomError: the engine refuses a name or a weight, or keeps too many tables.
        """
        table = None if weights is None else list(weights.items())
        try:
            self._link.session.route(capability, table)
        except self._link.refusal as error:
            raise self._link.translate(error) from None

    def read(self) -> dict[str, dict[str, float]]:
        """Return all weights by capability and provider."""
        return decode(self._engine.routes(self._namespace))


def open_local(
    *,
    virtual: bool = False,
    seed: int | None = None,
    log: LogConfig | None = None,
    accept_loss: bool = False,
) -> Local:
    """Make an engine in this process.

    Args:
        virtual: its clock moves only by hand.
        seed: what its ids and its choices follow from.
        log: how its log is kept; by default in memory.
        accept_loss: go on behind damage of the log, at the price of a gap.

    Raises:
        LoomError: the data directory cannot be used: another engine has it, it is no log …
    """
    from loom._engine import Engine, EngineError

    kept = LogConfig() if log is None else log
    recording = "off" if kept.dir is None else kept.record
    age = kept.retention_age
    try:
        engine = Engine(
            virtual_clock=virtual,
            seed=seed,
            data=None if kept.dir is None else str(kept.dir),
            durable=kept.durable,
            ack=ACK_CODES[kept.ack] or 0,
            record=RECORD_CODES[recording],
            retention_bytes=kept.retention_bytes,
            retention_age_ms=None if age is None else age * 1000,
            retention_idle=kept.retention_idle,
            accept_loss=accept_loss,
        )
    except EngineError as error:
        raise refused(error) from None
    return Local(
        engine,
        EngineError,
        virtual=virtual,
        has_directory=kept.dir is not None,
        is_recording=recording != "off",
    )
