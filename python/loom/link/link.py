"""The link: a client's way to an engine, in this process or over the Bridge.

Python offers and drains; the session's file descriptor says when another session or thread put
something into the inbox. A session's own calls do not write that descriptor, but for ``emit``:
whoever makes another call that can fill the inbox looks at ``session.pending`` then, and drains.

Lost wake-ups: ``pending`` is read after the call that may set it, on the loop's thread, and every
other source writes the descriptor after it has filled the inbox; so either this thread sees the
flag or the loop sees the descriptor.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from loom.codec import decode
from loom.envelope import Envelope, Receipt
from loom.errors import Cancelled, LoomError, NotSupported, error_from_code
from loom.limits import DRAIN_BATCH, REPLIES, STREAM_CHUNKS
from loom.link.clock import Clock, VirtualClock
from loom.link.state import LinkEvent, LinkState

if TYPE_CHECKING:
    from loom._engine import Delivery, Session

    # sender, turn, topic, payload, delivery class; None: it has to be offered with more care
    Emit = Callable[[int, Delivery | None, str, bytes, int], Receipt | None]

_logger = logging.getLogger("loom.link")
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


class Parked(Exception):
    """An emit has not been taken yet: ``taken`` will tell, or raise why it was refused."""

    def __init__(self, ticket: int, taken: "asyncio.Future[Receipt]") -> None:
        super().__init__(ticket)
        self.ticket = ticket
        self.taken = taken


class Link:
    """A client's way to an engine: one session, its waiting calls, its wake-ups.

    Belongs to one event loop. ``state`` says how it stands; one in this process is up until it is
    closed.

    ``session`` is the engine's own object; its methods raise ``refusal``, which ``translate`` turns
    into the ``LoomError`` of its code.
    """

    def __init__(
        self, session: "Session", clock: Clock, refusal: type[Exception], namespace: str
    ) -> None:
        self.session = session
        self.namespace: str = namespace
        self.clock = clock
        self.refusal = refusal
        self.has_null: Callable[[bytes], bool] = _has_null()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._ended: dict[int, Callable[[], None]] = {}
        self.error: LoomError | None = None  # why it has ended, where nobody here has closed it
        self._waiters: dict[int, Waiter] = {}
        self._ready: dict[int, Callable[[], None]] = {}
        self._credit: dict[int, asyncio.Future[None]] = {}
        self._cancel: dict[int, Callable[[], object]] = {}
        self._probe: dict[int, Callable[[str], None]] = {}
        self._unasked: dict[int, list[str]] = {}  # probes of providers that have not started
        self._parked: dict[int, asyncio.Future[Receipt]] = {}
        self.emit: Emit = self._emit()
        self._settled = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = float("inf")
        self._closed = False
        self.state: LinkState = "up"
        self.changes: int = 0  # of its state
        self._told: list[Callable[[LinkEvent], None]] = []  # who hears of changes
        self._work, self._notices = self._by_kind()
        self._checks: list[Callable[[], None]] = []
        self._loop.add_reader(session.fd, self.drain)

    def _emit(self) -> "Emit":
        """Return the usual publish: what the engine does at once needs nothing around it."""
        return self.session.emit

    # -- offering ---------------------------------------------------------------------------------

    def translate(self, error: Exception, *, payload: str = "data") -> LoomError:
        """Return what the engine refused; ``payload`` is the caller's word for that field."""
        self.look()  # the refusal may be an event to somebody
        return refused(error, payload)

    async def parked(self, ticket: int, *, payload: str = "data") -> Receipt:
        """Wait until an offer that found no room is taken.

        ``payload`` is the caller's word for that field of a refusal.

        Raises:
            LoomError: it was refused after all.
        """
        taken: asyncio.Future[Receipt] = self._loop.create_future()
        self._parked[ticket] = taken
        self.look()
        self._ring_within(0.0)
        try:
            return await taken
        except LoomError as error:
            raise named(error, payload) from None
        except asyncio.CancelledError:
            self.withdraw(ticket)
            raise
        finally:
            self._parked.pop(ticket, None)
            self._tell_settled()

    def withdraw(self, ticket: int) -> None:
        """Give up waiting for an offer; one that was answered meanwhile stays as it is."""
        taken = self._parked.pop(ticket, None)
        if taken is not None and taken.cancelled():
            self.session.withdraw(ticket)
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

    # -- registering ------------------------------------------------------------------------------

    async def registered(self, handle: int) -> None:
        """Wait until what was asked of the engine under this handle is done.

        In process it is when it was asked. Call it before anything else is awaited.

        Raises:
            LoomError: it was refused.
        """

    async def connected(self) -> None:
        """Wait until the engine has taken this session; in process it has.

        Raises:
            Unavailable: nobody answers there.
            LoomError: it was refused.
        """

    is_shared: bool = False
    """Whether others change the states and the memory, too."""

    async def states(self, sender: int, lane: str | None = None) -> list[tuple[str, bytes]]:
        """Return the states of an agent as the log has them: lanes and payloads."""
        return self.session.states(sender)

    async def memories(self, key: str | None = None) -> list[tuple[str, bytes, int | None]]:
        """Return the values of the memory as the log has them: keys, payloads, until when in ms."""
        return self.session.memories()

    # -- the state of the link --------------------------------------------------------------------

    def on_state(self, hear: Callable[[LinkEvent], None]) -> None:
        """Call ``hear`` with each change of the state from now on; it must not raise."""
        self._told.append(hear)

    def off_state(self, hear: Callable[[LinkEvent], None]) -> None:
        """Call it no more."""
        if hear in self._told:
            self._told.remove(hear)

    def stats(self) -> dict[str, Any]:
        """Return the state, how often it has changed, and how many answers are waited for."""
        return {"state": self.state, "changes": self.changes, "waiting": self.waiting}

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
            engine.NOTICE_REMOVED: self._on_removed,
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

    def _on_removed(self, handle: int, _: int, __: Any) -> None:
        self._ready.pop(handle, None)
        end = self._ended.pop(handle, None)
        if end is not None:
            end()

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


def named(error: LoomError, payload: str) -> LoomError:
    """Return an error of a node with the caller's word for the field ``payload``."""
    if error.field == "payload":
        error.field = payload
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
            self.done.set_exception(named(error, "data"))


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
            self.done.set_exception(named(error, "args"))


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
        self._error = None if error is None else named(error, "args")
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
