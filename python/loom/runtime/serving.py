"""One capability at work.

Arguments checked, the function run, its result or its chunks given back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final, cast

from pydantic import ValidationError

from loom.capabilities import Capability
from loom.codec import encode
from loom.context import invalid
from loom.envelope import Envelope
from loom.errors import CODES, CapabilityError, Exhausted, InvalidParams, LoomError
from loom.limits import PAYLOAD_BYTES
from loom.link import Link
from loom.runtime.host import error_detail, error_number
from loom.runtime.threads import Threads

_CANCELLED: Final = CODES["CANCELLED"]
_logger = logging.getLogger("loom.capability")


class Serving:
    """Runs the invocations of one capability. ``run`` is what its pool calls."""

    def __init__(self, link: Link, capability: Capability[..., Any]) -> None:
        self._link = link
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

    async def run(self, item: Envelope) -> int:
        """Run the function for one invocation.

        The engine is always told its end, so this returns 0.
        """
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
            if task.cancelling() > given_up:
                self._tell(lease, _CANCELLED, b"")
                raise
            if given_up:
                task.uncancel()
                self._tell(lease, _CANCELLED, b"")
            else:
                self._failed(lease, error)
        except BaseException as error:  # noqa: BLE001  the root of user code: whatever it raises ends this call only
            self._failed(lease, error)
        finally:
            self._link.off_cancel(lease)
        return 0

    async def _invoke(self, item: Envelope, lease: int) -> None:
        keywords = self._checked(item)
        if self._capability.streams:
            chunks = cast("AsyncIterator[Any]", self._function(**keywords))
            payload = await self._stream(chunks, lease, live=item.streamed)
        elif self._threads is None:
            payload = encode(await self._function(**keywords), field="result")
        else:
            payload = encode(await self._threads.run(self._function, keywords), field="result")
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
            raise invalid(error, "args", f"{self._name} cannot take these arguments") from None
        return self._capability.keywords(arguments, item.effect_id)

    async def _stream(self, chunks: AsyncIterator[Any], lease: int, *, live: bool) -> bytes:
        """Send chunks as they come.

        For a caller that wants one result, collect them into a list.
        """
        collected: list[bytes] = []
        size = 0
        async with aclosing(cast("Any", chunks)) as source:
            async for chunk in source:
                payload = encode(chunk, field="chunk")
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

    def _failed(self, lease: int, error: BaseException) -> None:
        """Tell the caller that it failed; the stack stays in this process's log."""
        name = self._name
        if isinstance(error, LoomError):
            told: LoomError = error
        else:
            told = CapabilityError(f"{name} raised {type(error).__name__}", who=name)
        if not isinstance(told, InvalidParams):
            _logger.error("capability %s failed: %s", name, told, exc_info=error)
        self._tell(lease, error_number(told), error_detail(told, who=name))

    def _tell(self, lease: int, number: int, detail: bytes) -> None:
        self._link.session.fail(lease, number, detail)
        self._link.look()
