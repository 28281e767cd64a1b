"""The link to an engine in the same process.

Python offers and drains; the session's file descriptor says when another session or thread put
something into the inbox. A session's own calls do not write that descriptor, but for ``emit``:
whoever makes another call that can fill the inbox looks at ``session.pending`` then, and drains.

Lost wake-ups: ``pending`` is read after the call that may set it, on the loop's thread, and every
other source writes the descriptor after it has filled the inbox; so either this thread sees the
flag or the loop sees the descriptor.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from loom.codec import decode
from loom.config import RECORD_CODES, LogConfig
from loom.envelope import ACK_CODES, Envelope, Receipt
from loom.errors import Cancelled, LoomError, NotSupported, error_from_code
from loom.limits import DRAIN_BATCH, REPLIES, STREAM_CHUNKS
from loom.link.clock import Clock, SystemClock, VirtualClock

if TYPE_CHECKING:
    from loom._engine import Delivery, Engine, Session

P = ParamSpec("P")
R = TypeVar("R")

_SLACK: Final = 0.0005  # an alarm fires this much late, so that what is due has come due


class Waiter(Protocol):
    """Somebody in this process who waits for the end of a call or a request."""

    def answer(self, envelope: Envelope) -> None:
        """Take one reply."""
        ...

    def chunk(self, payload: bytes) -> None:
        """Take one chunk."""
        ...

    def end(self, error: LoomError | None, payload: bytes) -> None:
        """Take the end: an error, or what it ended with."""
        ...


class Link:
    """A client's way to an engine: one session, its waiting calls, its wake-ups.

    Belongs to one event loop.

    ``session`` is the engine's own object; its methods raise ``refusal``, which ``translate`` turns
    into the ``LoomError`` of its code.
    """

    def __init__(self, session: "Session", clock: Clock, refusal: type[Exception]) -> None:
        self.session = session
        self.clock = clock
        self.refusal = refusal
        self.has_null: Callable[[bytes], bool] = _has_null()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._ended: dict[int, Callable[[], None]] = {}
        self._waiters: dict[int, Waiter] = {}
        self._ready: dict[int, Callable[[], None]] = {}
        self._credit: dict[int, asyncio.Future[None]] = {}
        self._cancel: dict[int, Callable[[], object]] = {}
        self._probe: dict[int, Callable[[str], None]] = {}
        self._unasked: dict[int, list[str]] = {}  # probes of providers that have not started
        self._parked: dict[int, asyncio.Future[Receipt]] = {}
        self._settled = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = float("inf")
        self._closed = False
        self._work, self._notices = self._by_kind()
        self._checks: list[Callable[[], None]] = []
        self._loop.add_reader(session.fd, self.drain)

    # -- offering ---------------------------------------------------------------------------------

    def translate(self, error: Exception, *, payload: str = "data") -> LoomError:
        """Return what the engine refused; ``payload`` is the caller's word for that field."""
        self.look()  # the refusal may be an event to somebody
        return refused(error, payload)

    async def parked(self, ticket: int) -> Receipt:
        """Wait until an offer that found no room is taken.

        Raises:
            LoomError: it was refused after all.
        """
        taken: asyncio.Future[Receipt] = self._loop.create_future()
        self._parked[ticket] = taken
        self.look()
        self._ring_within(0.0)
        try:
            return await taken
        except asyncio.CancelledError:
            if taken.cancelled():
                self.session.withdraw(ticket)
            raise
        finally:
            self._parked.pop(ticket, None)
            self._tell_settled()

    async def redrive(self, consumer: int, n: int, payload: bytes | None) -> Receipt:
        """Publish a dead event anew, with other data if some is given, for who gave it up.

        Raises:
            LoomError: it is not dead, or its event is not kept any more.
        """
        try:
            ticket = self.session.redrive(consumer, n, payload)
        except self.refusal as error:
            raise self.translate(error) from None
        return await self.parked(ticket)

    def check_thread(self) -> None:
        """Refuse to wait in another thread than the loop's: nobody would be woken there.

        Raises:
            NotSupported: this is not the thread of the loop.
        """
        if threading.get_ident() != self._thread:
            raise NotSupported(
                "a context waits for answers only in the thread of its event loop",
                field="ctx",
                hint="asyncio.run_coroutine_threadsafe(ctx.request(…), loop).result(), or emit",
            )

    def look(self) -> None:
        """Drain if this session's own calls put something into its inbox."""
        if self.session.pending:
            self.drain()

    # -- waiting ----------------------------------------------------------------------------------

    def one_answer(self, call: int, timeout: float) -> Coroutine[Any, Any, Envelope]:
        """Wait for the first reply to a request.

        Raises:
            LoomError: the request ended without one.
        """
        waiter = _OneAnswer(self._loop.create_future())
        return self._wait(call, waiter, waiter.done, timeout)

    async def many_answers(self, call: int, timeout: float) -> "_ManyAnswers":
        """Wait until a request to many has ended; its answers and its summary."""
        waiter = _ManyAnswers(self._loop.create_future())
        await self._wait(call, waiter, waiter.done, timeout)
        return waiter

    def outcome(self, call: int, timeout: float) -> Coroutine[Any, Any, bytes]:
        """Wait for the result of a call.

        Raises:
            LoomError: the call ended otherwise than well.
        """
        waiter = _Outcome(self._loop.create_future())
        return self._wait(call, waiter, waiter.done, timeout)

    @asynccontextmanager
    async def chunks(self, call: int, timeout: float) -> AsyncGenerator["Chunks"]:
        """Read the chunks of a streamed call; leaving cancels what is still running."""
        stream = Chunks(self, call)
        self._waiters[call] = stream
        self._ring_within(timeout)
        self.look()
        try:
            yield stream
        finally:
            self._forget(call, cancel=not stream.ended)
            self._tell_settled()

    async def _wait(
        self, call: int, waiter: Waiter, done: "asyncio.Future[Any]", timeout: float
    ) -> Any:
        self._waiters[call] = waiter
        if self._loop.time() + timeout < self._alarm_at:
            self._ring_within(timeout)
        if self.session.pending:
            self.drain()
        try:
            return await done
        except asyncio.CancelledError:
            self._forget(call, cancel=True)
            raise
        finally:
            self._waiters.pop(call, None)
            self._tell_settled()

    def _forget(self, call: int, *, cancel: bool) -> None:
        self._waiters.pop(call, None)
        if cancel:
            self.session.cancel(call)
            self.look()

    # -- work for this session --------------------------------------------------------------------

    def on_ready(self, handle: int, wake: Callable[[], None]) -> None:
        """Call ``wake`` each time ``handle`` has work again after a take that gave None."""
        self._ready[handle] = wake

    def next_round(self, check: Callable[[], None]) -> None:
        """Call ``check`` once when the loop comes round: the loop has one callback for all."""
        if not self._checks:
            self._loop.call_soon(self._round)
        self._checks.append(check)

    def _round(self) -> None:
        checks, self._checks = self._checks, []
        self.look()
        for check in checks:
            check()

    def on_close(self, handle: int, end: Callable[[], None]) -> None:
        """Call ``end`` when the link is closed before ``handle`` is removed."""
        self._ended[handle] = end

    def on_probe(self, handle: int, ask: Callable[[str], None]) -> None:
        """Call ``ask`` with each effect that the provider ``handle`` is asked about."""
        self._probe[handle] = ask
        for effect in self._unasked.pop(handle, ()):
            ask(effect)

    def on_cancel(self, lease: int, stop: Callable[[], object]) -> None:
        """Call ``stop`` when nobody waits for ``lease`` any more."""
        self._cancel[lease] = stop

    def off_cancel(self, lease: int) -> None:
        """Forget the lease: its work has ended."""
        self._cancel.pop(lease, None)

    async def room_for_chunk(self, lease: int) -> None:
        """Wait until the caller has granted ``lease`` another chunk."""
        granted: asyncio.Future[None] = self._loop.create_future()
        self._credit[lease] = granted
        self.look()
        try:
            await granted
        finally:
            self._credit.pop(lease, None)

    def remove(self, handle: int) -> None:
        """Take a registration, provider or subscription out of the engine."""
        self._ready.pop(handle, None)
        self._ended.pop(handle, None)
        self._probe.pop(handle, None)
        self._unasked.pop(handle, None)
        if self._closed:
            return
        self.session.remove(handle)
        self.look()

    # -- the inbox --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Hand every notice of the inbox to whoever waits for it. Runs no user code."""
        if threading.get_ident() != self._thread:
            return  # the engine has written the descriptor: the loop drains
        session, notices, ready, work = self.session, self._notices, self._ready, self._work
        while True:
            for kind, ident, code, body in session.drain(DRAIN_BATCH):
                if kind != work:
                    notices[kind](ident, code, body)
                elif (wake := ready.get(ident)) is not None:
                    wake()
            if not session.pending:
                return

    def _by_kind(self) -> tuple[int, dict[int, Callable[[int, int, Any], None]]]:
        """Return the kind of notice that says READY, and who takes each of the others."""
        from loom import _engine as engine

        return engine.NOTICE_READY, {
            engine.NOTICE_ANSWER: self._on_answer,
            engine.NOTICE_OUTCOME: self._on_outcome,
            engine.NOTICE_CHUNK: self._on_chunk,
            engine.NOTICE_CREDIT: self._on_credit,
            engine.NOTICE_CANCEL: self._on_cancel,
            engine.NOTICE_ACCEPTED: self._on_accepted,
            engine.NOTICE_REFUSED: self._on_refused,
            engine.NOTICE_DUE: self._on_due,
            engine.NOTICE_PROBE: self._on_probe,
        }

    def _on_answer(self, call: int, _: int, envelope: Any) -> None:
        waiter = self._waiters.get(call)
        if waiter is not None:
            waiter.answer(envelope)

    def _on_outcome(self, call: int, code: int, payload: Any) -> None:
        waiter = self._waiters.pop(call, None)
        if waiter is not None:
            waiter.end(error_from_detail(code, payload) if code else None, payload)

    def _on_chunk(self, call: int, _: int, payload: Any) -> None:
        waiter = self._waiters.get(call)
        if waiter is not None:
            waiter.chunk(payload)

    def _on_credit(self, lease: int, _: int, __: Any) -> None:
        granted = self._credit.get(lease)
        if granted is not None and not granted.done():
            granted.set_result(None)

    def _on_cancel(self, lease: int, _: int, __: Any) -> None:
        stop = self._cancel.pop(lease, None)
        if stop is not None:
            stop()

    def _on_accepted(self, ticket: int, _: int, receipt: Any) -> None:
        taken = self._parked.get(ticket)
        if taken is not None and not taken.done():
            taken.set_result(receipt)

    def _on_refused(self, ticket: int, code: int, detail: Any) -> None:
        taken = self._parked.get(ticket)
        if taken is not None and not taken.done():
            taken.set_exception(error_from_detail(code, detail))

    def _on_probe(self, handle: int, _: int, effect: Any) -> None:
        ask = self._probe.get(handle)
        if ask is not None:
            ask(effect)
        else:  # no more at a time than the engine asks one provider about
            self._unasked.setdefault(handle, []).append(effect)

    def _on_due(self, _: int, millis: int, __: Any) -> None:
        self._ring_within(max(millis, 1) / 1000)

    # -- deadlines --------------------------------------------------------------------------------

    def _ring_within(self, timeout: float) -> None:
        """Make sure that tick() runs when ``timeout`` seconds have passed."""
        if isinstance(self.clock, VirtualClock):
            return  # whoever advances the clock calls tick()
        when = self._loop.time() + timeout
        if timeout <= 0:
            self._tick()
        elif when < self._alarm_at:
            self._set_alarm(when)

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._loop.call_at(when + _SLACK, self._tick)

    def _tick(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = float("inf")
        remaining = self.tick()
        if remaining is not None:
            self._set_alarm(self._loop.time() + remaining)

    def tick(self) -> float | None:
        """End what is due; return the seconds until the next deadline."""
        remaining = self.session.tick()
        self.look()
        return remaining

    @property
    def waiting(self) -> int:
        """How many calls, requests and parked offers of this link have not ended."""
        return len(self._waiters) + len(self._parked)

    def _tell_settled(self) -> None:
        if not self._waiters and not self._parked:
            self._settled.set()

    async def settled(self) -> None:
        """Return once every call, request and parked offer of this link has ended."""
        while self.waiting:
            self._settled.clear()
            await self._settled.wait()

    def close(self) -> None:
        """Detach: registrations go, calls in flight are cancelled, waiters are told."""
        self._loop.remove_reader(self.session.fd)
        if self._alarm is not None:
            self._alarm.cancel()
        self.session.close()
        self._closed = True
        for end in list(self._ended.values()):
            end()
        self._ended.clear()
        gone = Cancelled("the app stopped", hint="the link to the engine was closed")
        for waiter in list(self._waiters.values()):
            waiter.end(gone, b"")
        for taken in list(self._parked.values()):
            if not taken.done():
                taken.set_exception(gone)
        self._waiters.clear()
        self._ready.clear()
        self._cancel.clear()


class Local:
    """An engine of this process."""

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
            await self._aside(self._engine.open, namespace)

    def attach(self, namespace: str, name: str) -> Link:
        """Return a link with a session of its own.

        Call it in the event loop that will use the link.
        """
        try:
            session = self._engine.attach(namespace, name)
        except self._refusal as error:
            raise refused(error) from None
        return Link(session, self.clock, self._refusal)

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
        return await self._aside(self._engine.read, namespace, filters, start)

    async def close(self) -> None:
        """Close the log: what was appended is synced, within ``stop_seconds``.

        Raises:
            LoomError: it could not be closed well.
        """
        if self.has_directory:
            await self._aside(self._engine.close)

    async def _aside(self, fn: Callable[..., Any], *args: Any) -> Any:
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
        return decode(self._ask(self._engine.stats))

    def audit(self) -> dict[str, Any]:
        """Return the books of every subscription; what is queued is counted by walking."""
        return decode(self._ask(self._engine.audit))

    def directory(self, namespace: str, kind: str) -> Sequence[bytes]:
        """Return what is registered: ``kind`` is "agent" or "capability"."""
        return self._ask(self._engine.directory, namespace, kind)

    def effects(
        self, namespace: str, *, unknown: bool, after: str | None
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return a page of effects behind an id, and whether there are more."""
        page, more = self._ask(self._engine.effects, namespace, unknown, after)
        return decode(page), more

    def effect(self, namespace: str, effect: str) -> tuple[dict[str, Any], bytes | None] | None:
        """Return what is known of an effect, and its result.

        Raises:
            LoomError: code INVALID_PARAMS for what is not the id of an effect.
        """
        found = self._ask(self._engine.effect, namespace, effect)
        return None if found is None else (decode(found[0]), found[1])

    def _ask(self, ask: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return ask(*args, **kwargs)
        except self._refusal as error:
            raise refused(error, "result") from None

    def ledger(self, link: Link, namespace: str) -> "Ledger":
        """Return the effects of a namespace, to be settled through ``link``."""
        return Ledger(self, link, namespace)

    def routes(self, link: Link, namespace: str) -> "RouteTable":
        """Return the selection table of a namespace, to be written through ``link``."""
        return RouteTable(self._engine, link, namespace)


class Ledger:
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
        await self._link.parked(ticket)


class RouteTable:
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


def _has_null() -> Callable[[bytes], bool]:
    from loom import _engine as engine

    return engine.has_null


def refused(error: Exception, payload: str = "data") -> LoomError:
    """Return the error that stands for a refusal of the engine."""
    code, message, field, limit, hint, retry_after = error.args
    if field == "payload":
        field = payload
    return error_from_code(
        code, message, field=field, limit=limit, hint=hint, retry_after=retry_after
    )


def error_from_detail(code: int, detail: bytes) -> LoomError:
    """Return the error that a code and its detail stand for."""
    told: dict[str, Any] = decode(detail) if detail else {}
    error = error_from_code(
        code,
        told.get("message") or "the call ended without a message",
        field=told.get("field"),
        limit=told.get("limit"),
        hint=told.get("hint"),
        who=told.get("who"),
    )
    error.retry = told.get("retry", error.retry)
    millis = told.get("retry_after_ms")
    error.retry_after = None if millis is None else millis / 1000
    return error


class _OneAnswer:
    def __init__(self, done: "asyncio.Future[Envelope]") -> None:
        self.done = done

    def answer(self, envelope: Envelope) -> None:
        if not self.done.done():
            self.done.set_result(envelope)

    def chunk(self, payload: bytes) -> None:
        """A request has no chunks."""

    def end(self, error: LoomError | None, payload: bytes) -> None:
        if error is not None and not self.done.done():
            self.done.set_exception(error)


class _ManyAnswers:
    def __init__(self, done: "asyncio.Future[None]") -> None:
        self.done = done
        self.answers: list[Envelope] = []
        self.summary: dict[str, Any] = {}

    def answer(self, envelope: Envelope) -> None:
        if len(self.answers) < REPLIES:
            self.answers.append(envelope)

    def chunk(self, payload: bytes) -> None:
        """A request has no chunks."""

    def end(self, error: LoomError | None, payload: bytes) -> None:
        self.summary = decode(payload) if payload else {}
        if not self.done.done():
            self.done.set_result(None)


class _Outcome:
    def __init__(self, done: "asyncio.Future[bytes]") -> None:
        self.done = done

    def answer(self, envelope: Envelope) -> None:
        """A call has no replies."""

    def chunk(self, payload: bytes) -> None:
        """Only streams read chunks."""

    def end(self, error: LoomError | None, payload: bytes) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(payload)
        else:
            self.done.set_exception(error)


class Chunks:
    """The chunks of one streamed call, in order.

    The provider may be at most ``STREAM_CHUNKS`` ahead of the reader.
    """

    def __init__(self, link: Link, call: int) -> None:
        self._link = link
        self._call = call
        self._queue: list[bytes] = []
        self._read = 0
        self._granted = STREAM_CHUNKS
        self._error: LoomError | None = None
        self._more = asyncio.Event()
        self.ended: bool = False

    def answer(self, envelope: Envelope) -> None:
        """A call has no replies."""

    def chunk(self, payload: bytes) -> None:
        """Take one chunk."""
        self._queue.append(payload)
        self._more.set()

    def end(self, error: LoomError | None, payload: bytes) -> None:
        """Take the end."""
        self.ended = True
        self._error = error
        self._more.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            while not self._queue and not self.ended:
                self._more.clear()
                await self._more.wait()
            if not self._queue:
                if self._error is not None:
                    raise self._error
                return
            batch, self._queue = self._queue, []
            for payload in batch:
                yield payload
                self._read += 1
                if not self.ended and self._granted - self._read <= STREAM_CHUNKS // 2:
                    self._granted = self._read + STREAM_CHUNKS
                    self._link.session.grant(self._call, self._granted)
                    self._link.look()
