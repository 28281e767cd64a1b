"""One capability at work.

Arguments checked, the function run, its result or its chunks given back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from loom.capabilities import Capability
from loom.codec import encode
from loom.context import Context
from loom.envelope import Envelope, Event
from loom.errors import Cancelled, CapabilityError, Exhausted, InvalidParams, LoomError
from loom.limits import AGENT_CONCURRENCY, KEPT_PAYLOAD_BYTES, SYNC_THREADS
from loom.runtime.gauges import Gauges
from loom.runtime.host import Host, Raised, is_stopped, log_failure, lost, tell_failure
from loom.runtime.pool import Target
from loom.runtime.probing import Probing
from loom.runtime.threads import Threads
from loom.runtime.turns import as_it_is
from loom.validation import keywords_of

if TYPE_CHECKING:
    from loom.runtime.isolation import Workers

_CANCELLED_WITHIN = 1.0  # seconds after which a cancelled call that goes on is told of in the log
_logger = logging.getLogger("loom.capability")


class Serving:
    """Runs the invocations of one capability."""

    def __init__(self, host: Host, capability: Capability[..., Any]) -> None:
        self.host = host
        self._target = Target(self._serve, bytes, as_it_is)  # arguments are checked in there
        self.only: Target | None = self._target
        self._link = host.link
        self._loop = asyncio.get_running_loop()
        self._capability = capability
        self.name: str = capability.name
        self._function = capability.function
        self._gauges = host.services.gauges
        self._threads: Threads | None = None
        self._workers: Workers | None = None
        self._runs_here = False
        self._probing: Probing | None = None
        self.is_retired: bool = False  # its agent crashed: what still runs is cut off
        self.limit: int = AGENT_CONCURRENCY  # calls that may be under way at once
        if capability.is_isolated:
            self._workers = _workers_of(capability, self._gauges)
            self.limit = self._workers.limit
        elif not capability.is_async:
            self._threads, self.limit = Threads(capability.name, self._gauges), SYNC_THREADS
        else:
            self._runs_here = not capability.streams

    def listen(self, handle: int) -> None:
        """Answer what the engine asks of the capability's probe, if it has one."""
        if self._capability.prober is not None:
            self._probing = Probing(self._link, handle, self._capability)
            self._probing.start()

    async def stop(self) -> None:
        """End its worker processes, and wait a moment for it."""
        if self._workers is not None:
            await self._workers.close()

    def close(self) -> None:
        """Let idle threads end, and kill processes that are left."""
        if self._probing is not None:
            self._probing.close()
        if self._threads is not None:
            self._threads.close()
        if self._workers is not None:
            self._workers.abandon()
        self.only = self._target = Target(_closed)  # ends the cycle now: a descriptor hangs on it

    def find(self, topic: str) -> Target:
        """Return what runs the function, whatever the name it was called by."""
        return self._target

    async def _serve(self, ctx: Context[Any], event: Event[Any]) -> None:
        """Run the function for one invocation, and give its result back.

        When nobody waits for it any more, it is cancelled, and the worker that ran it goes on.
        """
        item = event.envelope
        lease = item.lease
        task = cast("asyncio.Task[None]", asyncio.current_task())
        given_up: asyncio.TimerHandle | None = None

        def give_up() -> None:
            nonlocal given_up
            if task.cancel():
                self._gauges.tasks_abandoned += 1
                given_up = self._loop.call_later(_CANCELLED_WITHIN, self._warn)

        self._link.on_cancel(lease, give_up)
        try:
            await self._invoke(item, lease)
            if given_up is not None:
                await asyncio.sleep(0)  # it came too late for the function, and is raised here
        except asyncio.CancelledError as error:
            if given_up is not None:
                task.uncancel()
            if given_up is None or task.cancelling():
                raise
            self.failed(item, error)
        finally:
            self._link.off_cancel(lease)
            if given_up is not None:
                self._gauges.tasks_abandoned -= 1
                given_up.cancel()

    def _warn(self) -> None:
        _logger.warning("a cancelled call of %s goes on; nobody waits for it", self.name)

    def misfit(self, item: Envelope, error: Exception) -> LoomError:
        """Return what to say of arguments that are not JSON; what is gets checked in ``_serve``."""
        return InvalidParams(f"the arguments are not JSON: {error}", field="args")

    def settle(self, item: Envelope, result: Any) -> None:
        """Never called: ``_serve`` has no result."""

    def cut_off(self) -> LoomError:
        """Return what an invocation has come to whose function was cancelled and goes on."""
        return lost(self._capability, "was cut off", begun=True)

    def failed(self, item: Envelope, error: BaseException) -> None:
        """Tell the caller that it failed.

        Text and stack of an error that is not a LoomError stay in this process's log.
        """
        name = self.name
        if isinstance(error, LoomError):
            told: LoomError = error
        elif self.is_retired and is_stopped(error):
            told = self.cut_off()
        elif isinstance(error, asyncio.CancelledError):
            told = Cancelled(f"{name} was cancelled", who=name)
        else:
            kind = error.kind if isinstance(error, Raised) else type(error).__name__
            told = CapabilityError(f"{name} raised {kind}", who=name)
        log_failure(_logger, f"capability {name}", told, error, heard=True)
        tell_failure(self.host, item.lease, told, name)

    async def _invoke(self, item: Envelope, lease: int) -> None:
        if self._runs_here:
            keywords = keywords_of(self._capability, item.payload, item.effect_id)
            payload = encode(await self._function(**keywords), "result", self._link.has_null)
        elif self._workers is not None:
            payload = await self._workers.run(item.payload, item.effect_id)
        elif self._threads is not None:
            keywords = keywords_of(self._capability, item.payload, item.effect_id)
            result = await self._threads.run(self._function, keywords)
            payload = encode(result, "result", self._link.has_null)
        else:
            keywords = keywords_of(self._capability, item.payload, item.effect_id)
            chunks = cast("AsyncIterator[Any]", self._function(**keywords))
            payload = await self._stream(chunks, lease, live=item.streamed)
        if item.streamed and not self._capability.streams:
            await self._chunk(lease, payload)
            payload = b""
        try:
            self._link.session.result(lease, payload)
        except self._link.refusal as error:
            raise self._link.translate(error, payload="result") from None
        self._link.look()

    async def _stream(self, chunks: AsyncIterator[Any], lease: int, *, live: bool) -> bytes:
        """Send chunks as they come.

        For a caller that wants one result, collect them into a list.
        """
        collected: list[bytes] = []
        size = 0
        async with aclosing(cast("Any", chunks)) as source:
            async for chunk in source:
                payload = encode(chunk, "chunk", self._link.has_null)
                if live:
                    await self._chunk(lease, payload)
                    continue
                size += len(payload) + 1
                if size > KEPT_PAYLOAD_BYTES:
                    raise Exhausted(
                        f"the chunks of {self.name} do not fit into one result",
                        field="result",
                        limit="kept_payload_bytes",
                        hint="read them with ctx.stream",
                    )
                collected.append(payload)
        return b"" if live else b"[" + b",".join(collected) + b"]"

    async def _chunk(self, lease: int, payload: bytes) -> None:
        session = self._link.session
        try:
            while not session.chunk(lease, payload):
                await self._link.room_for_chunk(lease)
        except self._link.refusal as error:
            raise self._link.translate(error, payload="chunk") from None
        self._link.look()


def _workers_of(capability: Capability[..., Any], gauges: Gauges) -> "Workers":
    """Return its processes: what is needed for them is loaded by those who have some."""
    from loom.runtime import isolation

    return isolation.Workers(capability, gauges)


async def _closed(ctx: Context[Any], event: Event[Any]) -> None:
    """Stands in when the app has stopped."""
