"""Probes of one provider: the engine asks whether an effect was done, and user code finds out."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from loom.capabilities import Capability, Done, NotDone
from loom.codec import encode
from loom.limits import PROBE_SECONDS, PROBES

if TYPE_CHECKING:
    from loom.link import Link

_DONE, _NOT_DONE, _CANNOT_TELL, _FAILED = range(4)  # as the engine numbers them
_logger = logging.getLogger("loom.capability")


class Probing:
    """Asks the probe of one capability, at most twice as often at a time as the engine wants."""

    def __init__(self, link: "Link", handle: int, capability: Capability[..., Any]) -> None:
        self._link = link
        self._handle = handle
        self._name = capability.name
        self._probe = capability.prober
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Take the engine's questions from now on."""
        if self._probe is not None:
            self._link.on_probe(self._handle, self._ask)

    def close(self) -> None:
        """Answer no more."""
        for task in self._tasks:
            task.cancel()
        self._probe = None

    def _ask(self, effect: str) -> None:
        if len(self._tasks) >= 2 * PROBES:  # they do not end though their time is up
            self._say(effect, _FAILED, b"")
            return
        name = f"loom probe {self._name}"
        task = asyncio.get_running_loop().create_task(self._find_out(effect), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find_out(self, effect: str) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                verdict, result = await self._verdict(effect)
        except Exception as error:
            _logger.warning("the probe of %s failed for %s", self._name, effect, exc_info=error)
            verdict, result = _FAILED, b""
        self._say(effect, verdict, result)

    async def _verdict(self, effect: str) -> tuple[int, bytes]:
        if self._probe is None:
            return _FAILED, b""
        told: object = await self._probe(effect)
        if isinstance(told, Done):
            return _DONE, encode(told.result, "result", self._link.has_null)
        if isinstance(told, NotDone):
            return _NOT_DONE, b""
        if told is None:
            return _CANNOT_TELL, b""
        raise TypeError(f"the probe of {self._name} returned {type(told).__name__}")

    def _say(self, effect: str, verdict: int, result: bytes) -> None:
        try:
            self._link.session.probed(self._handle, effect, verdict, result)
        except self._link.refusal as error:
            refused = self._link.translate(error, payload="result")
            _logger.warning("the probe of %s: %s", self._name, refused.message)
        self._link.look()
