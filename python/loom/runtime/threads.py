"""Threads for synchronous capabilities: few, bounded, daemonic, one pool per capability.

Not ``concurrent.futures``: its threads are joined when the interpreter exits, so one blocked tool
would keep a finished program alive for ever. A thread cannot be killed; a call that is given up
leaves its thread behind, counted, until the function returns.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from loom.errors import Exhausted
from loom.limits import SYNC_THREADS
from loom.runtime.gauges import Gauges

_Job = tuple["asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """At most ``SYNC_THREADS`` threads that run functions for one capability."""

    def __init__(self, name: str, gauges: Gauges) -> None:
        self._name = name
        self._gauges = gauges
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = 0
        self._running = 0

    async def run(self, fn: Callable[..., Any], keywords: dict[str, Any]) -> Any:
        """Return what ``fn(**keywords)`` returns, run in a thread with this task's variables.

        Raises:
            Exhausted: every thread still runs a function that nobody waits for any more.
        """
        if self._running >= SYNC_THREADS:
            raise Exhausted(
                f"all {SYNC_THREADS} threads of {self._name} run functions that were given up",
                limit="sync_threads",
                who=self._name,
                hint="give what blocks in it a timeout of its own, or make it async",
            )
        self._running += 1
        self._gauges.threads_busy += 1
        done: asyncio.Future[Any] = self._loop.create_future()
        variables = copy_context()
        self._jobs.put((done, lambda: variables.run(fn, **keywords)))
        if self._threads < self._running:
            self._threads += 1
            threading.Thread(target=self._work, name=f"loom-{self._name}", daemon=True).start()
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled():  # else it has just ended, or raised this itself
                self._gauges.threads_abandoned += 1
            raise

    def close(self) -> None:
        """Let the threads end when they have nothing to do."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            done, fn = job
            if done.cancelled():
                self._tell(self._finish, done, None, None)
                continue
            try:
                result = fn()
            except BaseException as error:  # noqa: BLE001  the root of user code in a thread
                self._tell(self._finish, done, None, error)
            else:
                self._tell(self._finish, done, result, None)

    def _tell(self, fn: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            return  # the loop has been closed: nobody waits any more

    def _finish(
        self, done: "asyncio.Future[Any]", result: Any, error: BaseException | None
    ) -> None:
        self._running -= 1
        self._gauges.threads_busy -= 1
        if done.cancelled():
            self._gauges.threads_abandoned -= 1
        elif error is None:
            done.set_result(result)
        elif isinstance(error, StopIteration):
            done.set_exception(RuntimeError("the function raised StopIteration"))
        else:
            done.set_exception(error)
