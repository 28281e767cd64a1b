"""Looks from a thread of its own whether the event loop goes on, and says where it stands if not.

It asks the loop for a sign of life a few times within the limit, never twice before an answer.
Nothing runs in between, so an idle app stays idle. It reports by itself: the loop cannot.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

from loom.errors import Exhausted
from loom.runtime.host import Host, error_detail, error_number

_SIGNS: Final = 5  # signs of life within the limit
_PLACES: Final = 12  # of a stack that is published, the innermost
_LAST_MOMENT: Final = 1.0  # seconds that the thread has to end
_logger = logging.getLogger("loom")


class Watchdog:
    """Watches the loop it is made in. ``limit``: seconds that the loop may stand still."""

    def __init__(self, host: Host, limit: float) -> None:
        self._host = host
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._signed = time.monotonic()  # written by the loop, read by the thread
        self._is_asked = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name=f"loom watchdog {host.name}", daemon=True
        )

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more, and wait for the end of the thread, which is at once."""
        self._stopped.set()
        self._thread.join(_LAST_MOMENT)

    # -- in the loop ------------------------------------------------------------------------------

    def _sign(self) -> None:
        self._signed = time.monotonic()
        self._is_asked = False
        with suppress(self._host.link.refusal):  # the app has stopped
            self._host.link.session.renew()

    def _count(self) -> None:
        self._host.services.gauges.loop_stalls += 1

    # -- in the thread ----------------------------------------------------------------------------

    def _watch(self) -> None:
        since: float | None = None  # when a loop that stands still gave its last sign
        try:
            while not self._stopped.wait(self._limit / _SIGNS):
                if not self._is_asked:
                    self._is_asked = True
                    self._loop.call_soon_threadsafe(self._sign)
                signed = self._signed
                if since is None and time.monotonic() - signed >= self._limit:
                    since = signed
                    self._stalled()
                elif since is not None and signed > since:
                    self._goes_on(signed - since)
                    since = None
        except RuntimeError:
            return  # the loop has been closed without stopping the app

    def _stalled(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
        stack = "" if frame is None else "".join(traceback.format_stack(frame))
        told = f"the event loop of {self._host.name} has stood still for {self._limit:g} s"
        _logger.error("%s\n%s", told, stack)
        self._loop.call_soon_threadsafe(self._count)
        with suppress(self._host.link.refusal):
            self._host.link.session.stalls(_places(frame))
        hint = "put what blocks into a plain function that is offered as a capability"
        self._report(f"{told} at {_places(frame)}", hint)

    def _goes_on(self, seconds: float) -> None:
        told = f"the event loop of {self._host.name} goes on; it stood still for {seconds:.1f} s"
        _logger.error("%s", told)
        self._report(told, None)

    def _report(self, message: str, hint: str | None) -> None:
        error = Exhausted(message, limit="loop_stall_seconds", hint=hint, retry=False)
        host = self._host
        try:
            host.session.report(host.sender, None, error_number(error), error_detail(error))
        except host.link.refusal:
            return  # the app has stopped


def _places(frame: FrameType | None) -> str:
    """Return where a stack stands, innermost first: files, lines and functions, no values."""
    places: list[str] = []
    while frame is not None and len(places) < _PLACES:
        code = frame.f_code
        places.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return ", ".join(places)
