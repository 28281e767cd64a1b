"""The Context: what a handler may do.

One is made per turn, and it is dead when its turn has ended.
"""

import asyncio
import logging
import uuid as _uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Mapping,
)
from contextlib import AsyncExitStack, asynccontextmanager
from difflib import get_close_matches
from random import Random  # noqa: TID251  a type: the generator is the app's, and seeded
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, cast, overload

from typing_extensions import TypedDict, TypeVar, Unpack

from loom.capabilities import Bound
from loom.checks import check_number, check_seconds, check_text, check_whole
from loom.codec import CANNOT_ENCODE, WRITERS, decode, encode
from loom.directory import AgentInfo, CapabilityInfo, entries_of
from loom.envelope import (
    ACK_CODES,
    BYTES_TYPE,
    QOS_CODES,
    AckLevel,
    Envelope,
    Event,
    QoS,
    Receipt,
    Replies,
    Start,
    check_start,
    opened,
)
from loom.errors import (
    CODES,
    InvalidParams,
    LoomError,
    NotFound,
    NotSupported,
    error_from_code,
)
from loom.limits import STREAM_CHUNKS, TTL_MS_MAX
from loom.link import Parked, named
from loom.middleware import Call, around
from loom.protocols import Memory, Model
from loom.record import Record
from loom.runtime.host import Host
from loom.runtime.stream import FromLog, Subscription
from loom.topics import matches
from loom.validation import adapter_of, check_returns, checked, validated

S = TypeVar("S", default=Any)
T = TypeVar("T")
R = TypeVar("R")

_DEFAULT_TIMEOUT = 30.0
_ALL = 2**31 - 1  # more than can ever answer
_BATCHED = QOS_CODES[None]
HOST = "loom_host"  # attributes of a log record that say for whom it was made
TURN = "loom_turn"  # the attribute of a log record that says in which turn it was made


class EmitOptions(TypedDict, total=False):
    """What an emit may ask for besides topic and data."""

    qos: QoS | None
    key: str | None
    ack: AckLevel | None
    ttl: float | None
    headers: Mapping[str, str] | None
    thread: str | None
    id: str | None


class Context(Record, Generic[S], gc=False, eq=False):
    """What a handler may do: publish, ask, call, remember, wait.

    Outside a handler (``app.running()``, ``on_start``) it belongs to the app or the agent, and each
    emit opens a new thread. Inside one, events it publishes carry the turn's thread, run and cause.
    """

    _host: Host
    _envelope: Any = None  # the engine's Delivery of this turn, an Envelope; None outside a handler
    _random: Random | None = None  # made at its first use

    # -- publishing -------------------------------------------------------------------------------

    async def emit(self, topic: str, data: Any = None, **options: Unpack[EmitOptions]) -> Receipt:
        """Publish ``data`` under ``topic``; ``options`` are those of ``EmitOptions``.

        ``key`` orders events and picks the lane; ``ttl`` is in seconds; ``thread`` is the
        conversation it belongs to, by default this turn's. Waits at most ``batched_wait_ms`` where
        a subscriber has no room (batched, the default); realtime replaces what is oldest,
        background is refused.

        ``ack`` makes the event durable and says what it must have reached before this returns:
        "os" (written), "disk" (synced). ``id`` is the publisher's own: a second event with it,
        within ten minutes, is the same one, and gets the first one's receipt.

        Raises:
            InvalidParams: the topic, the data or an option is wrong; ``field`` names it.
            Exhausted: no room, too many hops, or the disk is full.
            Conflict: another event with this ``id`` was published.
            NotSupported: an ack above "accepted" where the log has no data directory.
        """
        host = self._host
        if not options or (len(options) == 1 and "qos" in options):
            try:
                qos = QOS_CODES[options.get("qos")] if options else _BATCHED
                receipt = host.emit(
                    host.sender, self._envelope, topic, WRITERS[type(data)](data), qos
                )
            except Parked as parked:  # by a session elsewhere: the usual one is not to pay for it
                ticket, taken = parked.ticket, parked.taken
            except (KeyError, *CANNOT_ENCODE, host.link.refusal):
                ticket, taken = 0, None  # the careful way says what is wrong
            else:
                if receipt is not None:
                    return receipt
                ticket, taken = 0, None
            if taken is not None:
                try:
                    return await taken
                except LoomError as error:
                    error = named(error, "data")
                    raise self._refused("emit", topic, encode(data, "data"), error) from None
                except asyncio.CancelledError:
                    host.link.withdraw(ticket)
                    raise
        offered = self._offer(topic, data, options)
        if isinstance(offered, int):
            return await self._taken(offered, topic, data)
        host.link.look()
        return offered

    async def _taken(self, ticket: int, topic: str, data: Any) -> Receipt:
        """Wait until the engine has taken an event, or has refused it."""
        try:
            return await self._host.link.parked(ticket)
        except LoomError as error:
            raise self._refused("emit", topic, encode(data, "data"), error) from None

    def _refused(self, kind: str, name: str, payload: bytes, error: LoomError) -> LoomError:
        """Return the error of what the engine did not do, which is recorded."""
        self._host.services.steps.refused(self._envelope, kind, name, payload, error)
        return error

    def _offer(self, topic: str, data: Any, options: EmitOptions) -> Receipt | int:
        """Offer an event with all its options; what is wrong becomes a LoomError."""
        host = self._host
        for name in options:
            if name not in EmitOptions.__annotations__:
                raise InvalidParams(
                    f"emit has no option {name!r}",
                    field=name,
                    hint=f"options: {', '.join(EmitOptions.__annotations__)}",
                )
        ack = _ack_code(options.get("ack"))
        if ack and not host.services.engine.has_directory:
            raise NotSupported(
                f"ack={options.get('ack')!r} needs a log on disk",
                field="ack",
                hint="name a data directory: app.running(data=…), loom run --data DIR, [log] dir",
            )
        qos = _qos_code(options.get("qos"))
        more = _options(
            data,
            key=options.get("key"),
            ttl=options.get("ttl"),
            headers=options.get("headers"),
            thread=options.get("thread"),
            ident=options.get("id"),
        )
        payload = encode(data, "data", host.link.has_null)
        try:
            return host.session.offer(host.sender, self._envelope, topic, payload, qos, more, ack)
        except host.link.refusal as error:
            raise self._refused("emit", topic, payload, host.link.translate(error)) from None
        except TypeError as error:
            raise _wrong_type(topic, error) from None

    async def spawn(self, agent: str, data: Any = None, *, key: str | None = None) -> str:
        """Start a new thread at ``agent`` with ``data``; return the thread's id.

        Raises:
            NotFound: no agent of that name is in the directory.
        """
        if agent not in [info.name for info in await self.agents()]:
            raise NotFound(
                f"no agent is called {agent!r}",
                field="agent",
                hint="see `loom list agents`, or await ctx.agents()",
            )
        thread = str(self.uuid())
        await self.emit(f"spawn.{agent}", data, thread=thread, key=key)
        return thread

    # -- asking -----------------------------------------------------------------------------------

    @overload
    async def request(
        self,
        topic: str,
        data: Any = None,
        *,
        timeout: float = _DEFAULT_TIMEOUT,
        wait: bool = False,
        key: str | None = None,
        thread: str | None = None,
    ) -> Event[Any]: ...
    @overload
    async def request(
        self,
        topic: str,
        data: Any = None,
        *,
        returns: type[T],
        timeout: float = _DEFAULT_TIMEOUT,
        wait: bool = False,
        key: str | None = None,
        thread: str | None = None,
    ) -> Event[T]: ...
    async def request(
        self,
        topic: str,
        data: Any = None,
        *,
        timeout: float = _DEFAULT_TIMEOUT,
        returns: type[Any] | None = None,
        wait: bool = False,
        key: str | None = None,
        thread: str | None = None,
    ) -> Event[Any]:
        """Publish and wait at most ``timeout`` seconds for the first reply.

        ``key`` and ``thread`` are those of ``emit``. Ends at once when nobody listens
        (``wait=True`` waits for somebody) and when all who heard it have declined.

        Raises:
            Unavailable: nobody listens, or all declined.
            HandlerError: all declined, and one of them raised.
            DeadlineExceeded: no reply in time. Also a ``TimeoutError``.
            Deadlock: the only one who could answer waits for this very turn.
        """
        if returns is not None:
            check_returns(returns)
        call = self._request(topic, data, timeout, 1, wait=wait, key=key, thread=thread)
        return _read(await self._host.link.one_answer(call, timeout), returns)

    @overload
    async def request_many(
        self,
        topic: str,
        data: Any = None,
        *,
        first_k: int | None = None,
        timeout: float = _DEFAULT_TIMEOUT,
    ) -> Replies[Any]: ...
    @overload
    async def request_many(
        self,
        topic: str,
        data: Any = None,
        *,
        returns: type[T],
        first_k: int | None = None,
        timeout: float = _DEFAULT_TIMEOUT,
    ) -> Replies[T]: ...
    async def request_many(
        self,
        topic: str,
        data: Any = None,
        *,
        returns: type[Any] | None = None,
        first_k: int | None = None,
        timeout: float = _DEFAULT_TIMEOUT,
    ) -> Replies[Any]:
        """Publish and collect replies.

        Until ``first_k`` of them, all who heard it, or ``timeout`` seconds.

        Failures and missing answers are part of the result; nothing is raised for them. An answer
        that is no ``returns`` is a failure of who gave it.

        Raises:
            InvalidParams: ``first_k`` is not positive, or the data does not fit.
        """
        check_returns(returns)
        if first_k is not None:
            first_k = min(check_whole(first_k, "first_k", None), _ALL)
        try:
            call = self._request(topic, data, timeout, first_k or 0)
        except LoomError as error:
            if error.code == "UNAVAILABLE":
                return Replies(items=[], failures=[], missing=0)
            raise
        done = await self._host.link.many_answers(call, timeout)
        summary = done.summary
        failures = [
            error_from_code(CODES[f["code"]], f["message"], who=f.get("who"))
            for f in cast("list[dict[str, Any]]", summary.get("failures", []))
        ]
        items: list[Event[Any]] = []
        for envelope in done.answers:
            try:
                items.append(_read(envelope, returns))
            except InvalidParams as error:
                error.who = envelope.sender
                failures.append(error)
        missing = int(summary.get("matched", len(items))) - len(items) - len(failures)
        return Replies(items=items, failures=failures, missing=max(0, missing))

    async def reply(self, data: Any = None) -> None:
        """Answer the event of this turn.

        Raises:
            InvalidParams: nothing was asked, or the data does not fit.
        """
        envelope = self._envelope
        if envelope is None or not envelope.wants_reply:
            raise InvalidParams(
                "nothing was asked: this event wants no reply",
                field="reply",
                hint="emit an event, or check event.wants_reply",
            )
        link = self._host.link
        content_type = BYTES_TYPE if type(data) is bytes else None
        payload = encode(data)
        try:
            link.session.reply(envelope.lease, payload, content_type)
        except link.refusal as error:
            raise self._refused("reply", "", payload, link.translate(error)) from None
        link.look()

    # -- calling ----------------------------------------------------------------------------------

    @overload
    async def tool(
        self, call: Bound[R], *, timeout: float | None = None, key: str | None = None
    ) -> R: ...
    @overload
    async def tool(
        self,
        call: str,
        *,
        args: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        version: str | None = None,
    ) -> Any: ...
    @overload
    async def tool(
        self,
        call: str,
        *,
        returns: type[T],
        args: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        version: str | None = None,
    ) -> T: ...
    async def tool(
        self,
        call: Bound[Any] | str,
        *,
        args: Mapping[str, Any] | None = None,
        returns: type[Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        version: str | None = None,
    ) -> Any:
        """Call a capability, ``fn.bind(…)`` or a name with ``args``, and wait for its result.

        ``timeout`` in seconds, by default what the capability declares. A ``key`` names what the
        call is for: while one is under way, another with that key and the same arguments joins it;
        once it has ended, a call of what is not pure is given its outcome for 24 hours, after a
        restart too, and errors that may pass are forgotten. A keyed call is tried again after a
        refusal, whatever its effect. ``version`` of a name is by default the newest that somebody
        can serve.

        Raises:
            NotFound: no capability of that name, or not that version of it.
            Conflict: a call with this key had other arguments.
            ProviderUnavailable: it is known, and nobody can serve it now.
            InvalidParams: the arguments do not fit its schema.
            DeadlineExceeded: no result in time, and it changes nothing outside.
            Indeterminate: it was started, may have changed something outside, and gave no result.
            CapabilityError: it raised, or its result is not what it declares.
        """
        host = self._host
        if returns is not None:
            check_returns(returns)
        name, given, limit, version = self._call_of(call, args, timeout, version)
        if not host.middleware:
            number = await self._call(name, given, limit, version, key, 0)
            return _result(call, returns, name, await host.link.outcome(number, limit))

        async def made(_: Context[Any], item: Call) -> Any:
            number = await self._call(item.name, item.args, item.timeout, item.version, item.key, 0)
            payload = await host.link.outcome(number, item.timeout)
            return _result(call, returns, item.name, payload)

        asked = Call(name=name, args=given, timeout=limit, version=version, key=key)
        return await around(host.middleware, made, Call)(self, asked)

    @overload
    def stream(
        self, call: Bound[list[T]], *, timeout: float | None = None, key: str | None = None
    ) -> "_Stream[T]": ...
    @overload
    def stream(
        self,
        call: str,
        *,
        args: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        version: str | None = None,
    ) -> "_Stream[Any]": ...
    def stream(
        self,
        call: Bound[Any] | str,
        *,
        args: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        version: str | None = None,
    ) -> "_Stream[Any]":
        """Call a capability that answers in chunks: ``async with ctx.stream(…) as chunks.

        Async for chunk in chunks``.

        The provider is at most ``stream_chunks`` ahead of the reader. Leaving the block cancels
        what still runs.

        Raises:
            LoomError: as ``tool`` does, from the ``async for``.
        """
        return self._stream(call, args, timeout, version, key)

    @asynccontextmanager
    async def _stream(
        self,
        call: Bound[Any] | str,
        args: Mapping[str, Any] | None,
        timeout: float | None,
        version: str | None,
        key: str | None,
    ) -> AsyncGenerator[AsyncIterator[Any]]:
        host = self._host
        name, given, limit, version = self._call_of(call, args, timeout, version)
        adapter = call.capability.result if isinstance(call, Bound) else None
        async with AsyncExitStack() as stack:

            async def decoded(chunks: AsyncIterable[bytes]) -> AsyncIterator[Any]:
                async for chunk in chunks:
                    yield decode(chunk) if adapter is None else checked(adapter, chunk, name)

            async def made(_: Context[Any], item: Call) -> AsyncIterator[Any]:
                number = await self._call(
                    item.name, item.args, item.timeout, item.version, item.key, STREAM_CHUNKS
                )
                return decoded(
                    await stack.enter_async_context(host.link.chunks(number, item.timeout))
                )

            asked = Call(
                name=name, args=given, timeout=limit, version=version, key=key, streamed=True
            )
            yield await around(host.middleware, made, Call)(self, asked)

    # -- listening --------------------------------------------------------------------------------

    @asynccontextmanager
    async def watch(
        self, *patterns: str, qos: QoS = "realtime", start: Start = "now"
    ) -> AsyncGenerator[AsyncIterator[Event[Any]]]:
        """Listen to events that match any of ``patterns`` from now on.

        ``async with ctx.watch(">") as events``.

        Delivered in order, each once. By default the newest stay: a watcher that is slow loses the
        oldest, counted as dropped; with ``qos="batched"`` those who publish wait for it as they do
        for an agent.

        With another ``start`` than "now" it gives durable events from there on, out of the log,
        and then what comes: no durable event is missing and none comes twice, whatever is lost on
        the way. A position stands for itself and what follows.

        Raises:
            InvalidParams: one of ``patterns`` is not a filter, or there is none.
            InvalidCursor: ``start`` is no position of this log (from the ``async for``).
            CursorExpired: what stood there is not kept any more (from the ``async for``).
            Unauthenticated, ...: the node has ended the session, such as when the token was
                revoked (from the ``async for``).
        """
        for pattern in patterns:
            check_text(pattern, "patterns")
        _qos_code(qos)
        begins = check_start(start)
        services = self._host.services
        live = Subscription(self._host.link, patterns, qos=qos)
        await live.started()
        events: Subscription | FromLog = live
        if begins != "now":
            events = FromLog(services.engine, services.namespace, live, patterns, begins)
        try:
            yield services.steps.heard(self._envelope, patterns, events)
        finally:
            events.close()

    @asynccontextmanager
    async def join_thread(self, thread_id: str) -> AsyncGenerator["Thread"]:
        """Join a conversation: ``async with ctx.join_thread(id) as thread``.

        Raises:
            InvalidParams: ``thread_id`` cannot be a token of a topic.
        """
        patterns = [f"thread.{thread_id}.>"]
        subscription = Subscription(self._host.link, patterns, qos="batched")
        await subscription.started()
        events = self._host.services.steps.heard(self._envelope, patterns, subscription)

        async def broadcast(data: Any) -> Receipt:
            return await self.emit(f"thread.{thread_id}.broadcast", data, thread=thread_id)

        try:
            yield Thread(thread_id, events, broadcast)
        finally:
            subscription.close()

    # -- the directory ----------------------------------------------------------------------------

    async def agents(
        self, name: str | None = None, *, topic: str | None = None, capability: str | None = None
    ) -> list[AgentInfo]:
        """Return the agents that are there now.

        Only those called ``name`` (or ``namespace/name``), that hear ``topic``, or that offer
        ``capability``.

        Raises:
            InvalidParams: one of them is not text.
        """
        for field, value in (("name", name), ("topic", topic), ("capability", capability)):
            if value is not None:
                check_text(value, field)
        found = entries_of(
            AgentInfo, await self._directory("agent"), leave_out=self._host.log.warning
        )
        if name is not None:
            found = [a for a in found if name in (a.name, f"{self.namespace}/{a.name}")]
        if topic is not None:
            found = [a for a in found if any(matches(f, topic) for f in a.filters)]
        if capability is not None:
            found = [a for a in found if capability in a.capabilities]
        return found

    async def ensure_agent(self, spec: "AgentSpec") -> None:
        """Start an agent in the running app unless it has one of that name.

        For what comes with a coordinator of its own; an app declares its agents with ``app.agent``.

        Raises:
            Cancelled: the app is stopping.
        """
        await self._host.services.start(spec)

    async def capabilities(self, pattern: str = ">") -> list[CapabilityInfo]:
        """Return the capabilities that are there now, of those whose name matches a filter.

        Raises:
            InvalidParams: ``pattern`` is not text.
        """
        check_text(pattern, "pattern")
        entries = entries_of(
            CapabilityInfo, await self._directory("capability"), leave_out=self._host.log.warning
        )
        return [info for info in entries if matches(pattern, info.name)]

    # -- memory, model, state ---------------------------------------------------------------------

    @property
    def memory(self) -> Memory:
        """The key-value store of the namespace."""
        return self._host.services.steps.memory(self._envelope)

    @property
    def model(self) -> Model:
        """The model that configuration has chosen.

        Raises:
            NotSupported: what was configured needs an extra that is not installed.
        """
        return self._host.services.steps.model(self._envelope)

    @property
    def state(self) -> S:
        """The agent's state for this event's key, else its thread.

        Made by the declared type at first use.

        Raises:
            NotSupported: the agent declared no state, or this is not a handler.
        """
        envelope = self._envelope
        if envelope is None:
            raise NotSupported("there is no state outside a handler", field="state")
        return self._host.state_of(envelope.key or envelope.thread_id)

    # -- waiting and choosing ---------------------------------------------------------------------

    async def step(self, fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Run ``fn`` and return its result.

        In a durable turn the result will be kept and not made again.
        """
        return await self._host.services.steps.run(self._envelope, fn, args, kwargs)

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds`` of the engine's clock, which a Harness can move by hand.

        Raises:
            InvalidParams: it is not a finite number.
        """
        check_number(seconds, "seconds")
        await self._host.services.steps.sleep(self._envelope, seconds)

    async def gather(self, *coroutines: Coroutine[Any, Any, T]) -> list[T]:
        """Run all to their end and return their results in order.

        The first error cancels the rest and is raised, a ``SystemExit`` as any other.
        """
        tasks: list[asyncio.Task[T]] = []
        try:
            async with self.task_group() as group:
                tasks.extend(group.create_task(c) for c in coroutines)
        except BaseExceptionGroup as errors:
            _raise_first(errors)
        return [task.result() for task in tasks]

    def task_group(self) -> asyncio.TaskGroup:
        """Return a task group: ``async with ctx.task_group() as group: group.create_task(…)``.

        A ``SystemExit`` or ``KeyboardInterrupt`` of one of its tasks is raised where the block
        ends; asyncio's own group would let it end the event loop.
        """
        return _TaskGroup()

    async def race(self, *coroutines: Coroutine[Any, Any, T]) -> T:
        """Return what the first to finish returns, or raise what it raises.

        The others are cancelled and awaited.
        """
        if not coroutines:
            raise InvalidParams("a race needs somebody to run", field="coroutines")
        tasks = [asyncio.create_task(_contained(c)) for c in coroutines]  # noqa: TID251  awaited below
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            return next(task for task in tasks if task in done).result()
        except _Exit as exit_:
            raise exit_.error from None

    def now(self) -> float:
        """Return seconds since the epoch, from the engine's clock."""
        return self._host.services.steps.now(self._envelope)

    def monotonic(self) -> float:
        """Return seconds of the engine's clock that never goes back: what ``deadline`` is in."""
        return self._host.services.steps.monotonic(self._envelope)

    def uuid(self) -> _uuid.UUID:
        """Return a UUID drawn from ``random``."""
        return _uuid.UUID(int=self.random.getrandbits(128), version=4)

    @property
    def random(self) -> Random:
        """A random generator: in a handler the same for the same event and agent, however often.

        Outside a handler it is the app's, the same for the same seed.
        """
        if self._random is None:
            self._random = self._host.services.steps.random(self._envelope, self._host.name)
        return self._random

    async def approve(self, what: str, *, timeout: float | None = None) -> NoReturn:
        """Ask a person.

        Raises:
            NotSupported: always, until approvals are built.
        """
        raise NotSupported("approvals are not built yet", field="approve")

    # -- who and where ----------------------------------------------------------------------------

    @property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """A logger named ``loom.agent.<name>``.

        Records from INFO up are also events on ``loom.log.<level>``, in this turn's thread and run.
        """
        return logging.LoggerAdapter(self._host.log, {HOST: self._host, TURN: self._envelope})

    @property
    def agent(self) -> str:
        """Name of the agent, or of the app outside a handler."""
        return self._host.name

    @property
    def namespace(self) -> str:
        """The namespace this context publishes in."""
        return self._host.services.namespace

    @property
    def thread_id(self) -> str | None:
        """The conversation of this turn; None outside a handler."""
        return None if self._envelope is None else self._envelope.thread_id

    @property
    def run_id(self) -> str | None:
        """The run of this turn; None outside a handler."""
        return None if self._envelope is None else self._envelope.run_id

    @property
    def deadline(self) -> float | None:
        """When the requester of this turn stops waiting, on the engine's clock, or None."""
        return None if self._envelope is None else self._envelope.deadline

    # -- inside -----------------------------------------------------------------------------------

    def _request(
        self,
        topic: str,
        data: Any,
        timeout: float,
        first_k: int,
        *,
        wait: bool = False,
        key: str | None = None,
        thread: str | None = None,
    ) -> int:
        host = self._host
        link = host.link
        link.check_thread()
        options = None
        if key is not None or thread is not None or type(data) is bytes:
            options = _options(data, key=key, thread=thread)
        payload = encode(data, "data", link.has_null)
        try:
            return link.session.request(
                host.sender,
                self._envelope,
                topic,
                payload,
                check_seconds(timeout, "timeout"),
                first_k,
                wait,
                options,
            )
        except link.refusal as error:
            raise self._refused("request", topic, payload, link.translate(error)) from None
        except TypeError as error:
            raise _wrong_type(topic, error) from None

    def _call_of(
        self,
        call: Bound[Any] | str,
        args: Mapping[str, Any] | None,
        timeout: float | None,
        version: str | None,
    ) -> tuple[str, Mapping[str, Any], float, str | None]:
        """Return name, arguments, timeout and version of a call."""
        if isinstance(call, Bound):
            if args is not None or version is not None:
                field = "version" if args is None else "args"
                raise InvalidParams(
                    f"{field} goes with a name",
                    field=field,
                    hint="a bound call has its arguments from bind(…), and its own version",
                )
            terms = call.capability.terms
            limit = terms.timeout if timeout is None else timeout
            return terms.name, call.arguments, check_seconds(limit, "timeout"), terms.version
        if version is not None and not isinstance(version, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidParams(
                f"the version is {version!r}, not text", field="version", hint='write version="1"'
            )
        if not isinstance(call, str):  # pyright: ignore[reportUnnecessaryIsInstance]  untyped callers
            raise InvalidParams(
                f"{call!r} is not a call", field="call", hint="give fn.bind(…), or a name and args"
            )
        if args is not None and not isinstance(args, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidParams(
                f"the arguments are {args!r}, not a mapping",
                field="args",
                hint="give args={name: value}",
            )
        limit = timeout
        if limit is None:
            limit = self._host.services.timeouts.get((call, version), _DEFAULT_TIMEOUT)
        return call, args or {}, check_seconds(limit, "timeout"), version

    async def _call(
        self,
        name: str,
        args: Mapping[str, Any],
        timeout: float,
        version: str | None,
        key: str | None,
        credit: int,
    ) -> int:
        host = self._host
        link = host.link
        link.check_thread()
        payload = encode(dict(args), "args", link.has_null)
        try:
            return link.session.call(
                host.sender, self._envelope, name, payload, timeout, key, credit, version
            )
        except link.refusal as error:
            told = self._refused("call", name, payload, link.translate(error))
            raise await self._not_called(name, told) from None
        except TypeError as error:
            if isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidParams(
                    f"an option has the wrong type: {error}", field="options"
                ) from None
            raise InvalidParams(f"{name!r} is not a capability's name", field="name") from None

    async def _not_called(self, name: str, error: LoomError) -> LoomError:
        """Add what was perhaps meant to an error that says that there is no such capability."""
        if error.code == "NOT_FOUND" and error.field != "version":
            known = [str(entry["name"]) for entry in await self._directory("capability")]
            close = get_close_matches(name, known, 1)
            if close:
                error.hint = f"did you mean {close[0]!r}?"
        return error

    async def _directory(self, kind: str) -> list[dict[str, Any]]:
        return await self._host.services.steps.directory(self._envelope, kind)


class Thread:
    """One conversation that this context has joined."""

    def __init__(
        self,
        thread_id: str,
        events: AsyncIterator[Event[Any]],
        broadcast: Callable[[Any], Awaitable[Receipt]],
    ) -> None:
        self.id = thread_id
        self._events = events
        self._broadcast = broadcast

    @property
    def events(self) -> AsyncIterator[Event[Any]]:
        """The thread's broadcasts and replies from the moment of joining, in order."""
        return self._events

    async def broadcast(self, data: Any = None) -> Receipt:
        """Publish ``data`` to all who have joined the thread, this member too."""
        return await self._broadcast(data)


def _read(answer: Envelope, returns: type[Any] | None) -> Event[Any]:
    """Return a reply with its data as ``returns``, or as plain values."""
    if returns is None:
        return opened(answer)
    return Event(answer, validated(returns, answer, "reply"))


def _result(call: Bound[Any] | str, returns: type[Any] | None, name: str, payload: bytes) -> Any:
    """Return what a call has given, checked against what was declared or asked for."""
    if isinstance(call, Bound):
        capability = call.capability
        if capability.result_is_bytes:
            return payload
        return checked(capability.result, payload, name, many=capability.streams)
    if returns is bytes:
        return payload
    if returns is not None:
        return checked(adapter_of(returns), payload, name)
    return decode(payload) if payload else None


if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from loom.agent import AgentSpec

    _Stream: TypeAlias = AbstractAsyncContextManager[AsyncIterator[T]]


def _options(
    data: Any,
    *,
    key: str | None = None,
    ttl: float | None = None,
    headers: Mapping[str, str] | None = None,
    thread: str | None = None,
    ident: str | None = None,
) -> Any:
    """Return the engine's options tuple for what is not the usual case."""
    ttl_ms = None
    if key is not None and not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidParams(f"the key is {key!r}, not text", field="key")
    if ident is not None and not check_text(ident, "id"):
        raise InvalidParams("the id is empty", field="id", hint="leave it out, or give one")
    if ttl is not None:
        if not isinstance(ttl, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidParams(
                f"a ttl of {ttl!r} is not a number", field="ttl", hint="give seconds"
            )
        if not 1 <= ttl * 1000 <= TTL_MS_MAX:
            raise InvalidParams(
                f"a ttl of {ttl} s is out of range",
                field="ttl",
                limit="ttl_ms_max",
                hint="give seconds, from 0.001 on",
            )
        ttl_ms = round(ttl * 1000)
    if headers is not None and not isinstance(headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidParams(
            f"headers is of type {type(headers).__name__}, not a mapping",
            field="headers",
            hint='give headers={"name": "value"}',
        )
    content_type = BYTES_TYPE if type(data) is bytes else None
    pairs = None if headers is None else [_header(name, value) for name, value in headers.items()]
    return (key, thread, ttl_ms, content_type, pairs, None, None, None, ident)


def _header(name: Any, value: Any) -> tuple[str, str]:
    if isinstance(name, str) and isinstance(value, str):
        return name, value
    raise InvalidParams(
        f"header {name!r} is {value!r}", field="headers", hint="names and values are text"
    )


def _qos_code(qos: object) -> int:
    if isinstance(qos, str | None) and qos in QOS_CODES:
        return QOS_CODES[cast("QoS | None", qos)]
    raise InvalidParams(
        f"{qos!r} is not a delivery class",
        field="qos",
        hint='use "realtime", "batched" or "background"',
    )


def _ack_code(ack: object) -> int | None:
    if isinstance(ack, str | None) and ack in ACK_CODES:
        return ACK_CODES[ack]
    raise InvalidParams(
        f"{ack!r} is not an ack level", field="ack", hint='use "accepted", "os" or "disk"'
    )


def _wrong_type(topic: Any, error: Exception) -> LoomError:
    if not isinstance(topic, str):
        return InvalidParams(
            f"the topic is of type {type(topic).__name__}, not text", field="topic"
        )
    return InvalidParams(f"an option has the wrong type: {error}", field="options")


_EXITS = (SystemExit, KeyboardInterrupt)  # asyncio lets these out of a task and ends the loop


class _Exit(BaseException):
    """Carries one of ``_EXITS`` out of a task."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"raised {type(error).__name__}")
        self.error = error


class _Contained(Coroutine[Any, Any, T]):
    """A coroutine whose ``_EXITS`` come out as ``_Exit``.

    It is no ``async def`` around the other: cancelled before its first step, that one would leave
    a coroutine that nobody has awaited.
    """

    def __init__(self, inner: Coroutine[Any, Any, T]) -> None:
        self._inner = inner
        self.__qualname__ = getattr(inner, "__qualname__", type(inner).__qualname__)

    def send(self, value: Any, /) -> Any:
        """Go on."""
        try:
            return self._inner.send(value)
        except _EXITS as error:
            raise _Exit(error) from None

    def throw(self, *error: Any) -> Any:
        """Go on with an error."""
        try:
            return self._inner.throw(*error)
        except _EXITS as raised:
            raise _Exit(raised) from None

    def close(self) -> None:
        """End it."""
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the coroutine itself."""
        return self._inner.__await__()


def _contained(coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """Return a coroutine for a task of its own. What is none is refused by asyncio."""
    return _Contained(coroutine) if asyncio.iscoroutine(coroutine) else coroutine


class _TaskGroup(asyncio.TaskGroup):
    """A task group that raises a child's ``_EXITS`` in the task that waits for it."""

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        """Start a child."""
        return super().create_task(_contained(coro), **options)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the children."""
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup as errors:
            for child in errors.exceptions:
                if isinstance(child, _Exit):
                    raise child.error from None
            raise


def _raise_first(errors: BaseExceptionGroup[BaseException]) -> NoReturn:
    first = errors.exceptions[0]
    if isinstance(first, BaseExceptionGroup):
        _raise_first(cast("BaseExceptionGroup[BaseException]", first))
    raise first from None


def app_of(context: Context[Any]) -> object:
    """Return what all contexts of one running app share, and no other app has."""
    return context._host.services.random  # pyright: ignore[reportPrivateUsage]
