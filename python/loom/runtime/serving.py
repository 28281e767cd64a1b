"""One capability at work.

Arguments checked, the function run, its result or its chunks given back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from pydantic import ValidationError

from loom.capabilities import Capability
from loom.codec import encode
from loom.context import Context
from loom.envelope import Envelope, Event
from loom.errors import Cancelled, CapabilityError, Exhausted, InvalidParams, LoomError
from loom.limits import PAYLOAD_BYTES
from loom.runtime.host import Host, log_failure, tell_failure
from loom.runtime.pool import Target
from loom.runtime.threads import Threads
from loom.runtime.turns import as_it_is
from loom.validation import invalid

_logger = logging.getLogger("loom.capability")


class Serving:
    """Runs the invocations of one capability."""

    def __init__(self, host: Host, capability: Capability[..., Any]) -> None:
        self.host = host
        self._target = Target(self._serve, bytes, as_it_is)  # arguments are checked in there
        self.only: Target | None = self._target
        self._link = host.link
        self._capability = capability
        self._name = capability.name
        self._function = capability.function
        self._arguments = capability.arguments
        self._threads = None if capability.is_async else Threads(capability.name)

    @property
    def busy_threads(self) -> int:
        """How many synchronous functions run or wait."""
        return 0 if self._threads is None else self._threads.busy

    @property
    def abandoned_threads(self) -> int:
        """How many threads still run for calls that nobody waits for any more."""
        return 0 if self._threads is None else self._threads.abandoned

    def close(self) -> None:
        """Let idle threads end."""
        if self._threads is not None:
            self._threads.close()
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
        given_up = False

        def give_up() -> None:
            nonlocal given_up
            given_up = task.cancel()

        self._link.on_cancel(lease, give_up)
        try:
            await self._invoke(item, lease)
            if given_up:
                await asyncio.sleep(0)  # it came too late for the function, and is raised here
        except asyncio.CancelledError as error:
            if given_up:
                task.uncancel()
            if not given_up or task.cancelling():
                raise
            self.failed(item, error)
        finally:
            self._link.off_cancel(lease)

    def misfit(self, item: Envelope, error: Exception) -> LoomError:
        """Return what to say of arguments that are not JSON; what is gets checked in ``_serve``."""
        return InvalidParams(f"the arguments are not JSON: {error}", field="args")

    def settle(self, item: Envelope, result: Any) -> None:
        """Never called: ``_serve`` has no result."""

    def failed(self, item: Envelope, error: BaseException) -> None:
        """Tell the caller that it failed.

        Text and stack of an error that is not a LoomError stay in this process's log.
        """
        name = self._name
        if isinstance(error, LoomError):
            told: LoomError = error
        elif isinstance(error, asyncio.CancelledError):
            told = Cancelled(f"{name} was cancelled", who=name)
        else:
            told = CapabilityError(f"{name} raised {type(error).__name__}", who=name)
        log_failure(_logger, f"capability {name}", told, error, heard=True)
        tell_failure(self.host, item.lease, told, name)

    async def _invoke(self, item: Envelope, lease: int) -> None:
        keywords = self._checked(item)
        if self._capability.streams:
            chunks = cast("AsyncIterator[Any]", self._function(**keywords))
            payload = await self._stream(chunks, lease, live=item.streamed)
        elif self._threads is None:
            payload = encode(await self._function(**keywords), "result", self._link.has_null)
        else:
            payload = encode(
                await self._threads.run(self._function, keywords), "result", self._link.has_null
            )
        if item.streamed and not self._capability.streams:
            await self._chunk(lease, payload)
            payload = b""
        try:
            self._link.session.result(lease, payload)
        except self._link.refusal as error:
            raise self._link.translate(error, payload="result") from None
        self._link.look()

    def _checked(self, item: Envelope) -> dict[str, Any]:
        try:
            arguments = self._arguments.model_validate_json(item.payload or b"{}")
        except ValidationError as error:
            raise invalid(
                error, "args", f"{self._name} cannot take these arguments", self._capability.usage
            ) from None
        return self._capability.keywords(arguments, item.effect_id)

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
                if size > PAYLOAD_BYTES:
                    raise Exhausted(
                        f"the chunks of {self._name} do not fit into one result",
                        field="result",
                        limit="payload_bytes",
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


async def _closed(ctx: Context[Any], event: Event[Any]) -> None:
    """Stands in when the app has stopped."""
