"""Says why a test stands still: it waits for a virtual clock that it does not move."""

import asyncio
import logging
from collections.abc import Callable

_LOOKS = 3  # within the patience; a test that goes on between two of them is not noticed as still
_logger = logging.getLogger("loom.testing")


class Stillness:
    """Looks at a running app now and then, and warns once when nothing has gone on for a while.

    Args:
        patience: real seconds without anything before it warns.
        is_calm: whether nothing can go on by itself now.
        progress: what differs as soon as something has gone on.
        due_in: seconds of the virtual clock until the next deadline, None where there is none.
    """

    def __init__(
        self,
        patience: float,
        *,
        is_calm: Callable[[], bool],
        progress: Callable[[], object],
        due_in: Callable[[], float | None],
    ) -> None:
        self._every = patience / _LOOKS
        self._is_calm = is_calm
        self._progress = progress
        self._due_in = due_in
        self._seen: object = None
        self._still = 0  # looks in a row that saw nothing new
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._every, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        seen = self._progress()
        self._still = self._still + 1 if self._is_calm() and seen == self._seen else 0
        self._seen = seen
        if self._still >= _LOOKS and (due := self._due_in()) is not None:
            _logger.warning(
                "nothing goes on by itself: the next deadline is in %.3g s of the virtual clock; "
                "await h.advance(…), or make what waits a task",
                due,
            )
            return
        self._timer = self._loop.call_later(self._every, self._look)
