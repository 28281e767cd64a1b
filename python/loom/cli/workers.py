"""``loom run --workers N``: an app in N processes that share its events at one node.

Processes that offer the same agent are the members of its group: each event goes to one of them,
those of one key to the same one, in order. When one dies its events go to the others, and another
process takes its place.
"""

import asyncio
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from loom.address import settle
from loom.config import BridgeConfig, load
from loom.errors import Unavailable
from loom.limits import STOP_SECONDS, WORKER_CRASHES, WORKER_SECONDS
from loom.node.node import Plan, hosting

_logger = logging.getLogger("loom.workers")
_START_SECONDS: Final = 30.0  # until a worker has imported its app and registered it
_PAUSE: Final = 0.5  # seconds before a worker is started again; doubled with each crash


@asynccontextmanager
async def at_node(url: str | None, data: str | None) -> AsyncGenerator[tuple[str, str]]:
    """Give url and token of the node that the workers share; without a url one is run here.

    Raises:
        LoomError: there is no such node, or none can be run.
    """
    config = load()
    if url is not None:
        yield settle(url, None, runtime=config.runtime, variables=config.environment)
        return
    with tempfile.TemporaryDirectory(prefix="loom-workers-") as folder:
        # A place of its own: it is not the node of this user, and ends with this process.
        environment = {
            name: value for name, value in config.environment.items() if name != "LOOM_HOME"
        }
        environment |= {"XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder}
        plan = Plan(
            config=replace(config, environment=environment),
            data=config.log.dir if data is None else Path(data),
            bridge=BridgeConfig(bind=(), unix=Path(folder) / "node.sock"),
        )
        async with hosting(plan) as node:
            token = node.token_file.read_text(encoding="utf-8").strip()
            yield node.urls[0], token


@asynccontextmanager
async def working(
    target: str | None, count: int, url: str, token: str
) -> AsyncGenerator["Workers"]:
    """Run ``count`` workers while the block runs; it begins when all are ready.

    Raises:
        Unavailable: a worker does not start.
    """
    workers = Workers(target, {**os.environ, "LOOM_URL": url, "LOOM_TOKEN": token})
    async with AsyncExitStack() as stack:
        stack.push_async_callback(workers.stop)
        await workers.start(count)
        yield workers


class Workers:
    """The processes of one app."""

    def __init__(self, target: str | None, environment: dict[str, str]) -> None:
        self._target = [target] if target else []
        self._environment = environment
        self._tasks: list[asyncio.Task[None]] = []
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._is_stopping = False
        self.failed: asyncio.Future[Unavailable] = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [process.pid for process in self._running.values()]

    async def start(self, count: int) -> None:
        """Start them all, and return when all are ready.

        Raises:
            Unavailable: one does not start.
        """
        readies = [asyncio.Event() for _ in range(count)]
        for number, ready in enumerate(readies):
            self._tasks.append(asyncio.create_task(self._keep(number, ready)))
        all_ready = asyncio.gather(*(ready.wait() for ready in readies))
        done, _ = await asyncio.wait(
            [all_ready, self.failed],
            timeout=_START_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if all_ready in done:
            return
        all_ready.cancel()
        if self.failed.done():
            raise self.failed.result()
        raise Unavailable(
            f"not all of {count} workers were ready in {_START_SECONDS:.0f} s", field="workers"
        )

    async def _keep(self, number: int, ready: asyncio.Event) -> None:
        """Keep one worker running; one that dies again and again is given up."""
        crashes: deque[float] = deque(maxlen=WORKER_CRASHES)
        clock = asyncio.get_running_loop().time
        while not self._is_stopping:
            code = await self._run(number, ready)
            if self._is_stopping:
                return
            crashes.append(clock())
            if len(crashes) == WORKER_CRASHES and crashes[-1] - crashes[0] < WORKER_SECONDS:
                error = Unavailable(
                    f"worker {number} has ended {WORKER_CRASHES} times within {WORKER_SECONDS} s, "
                    f"the last time with code {code}",
                    field="workers",
                    limit="worker_crashes",
                    hint="run the app with `loom run` alone to see why",
                )
                if not self.failed.done():
                    self.failed.set_result(error)
                return
            pause = min(_PAUSE * 2 ** (len(crashes) - 1), WORKER_SECONDS / WORKER_CRASHES)
            _logger.warning("worker %d ended with code %s; again in %.1f s", number, code, pause)
            await asyncio.sleep(pause)

    async def _run(self, number: int, ready: asyncio.Event) -> int:
        told, tells = os.pipe()
        loop = asyncio.get_running_loop()

        def heard() -> None:
            loop.remove_reader(told)
            if os.read(told, 1):  # else it has ended before it was ready
                ready.set()

        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "loom.cli.worker", str(tells), *self._target),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(tells,),
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the parent: it lets them finish
            )
        finally:
            os.close(tells)
        loop.add_reader(told, heard)
        self._running[number] = process
        try:
            return await process.wait()
        finally:
            loop.remove_reader(told)
            os.close(told)
            if process.returncode is None:
                process.kill()
                await process.wait()
            del self._running[number]

    async def stop(self) -> None:
        """Let all of them finish, within ``STOP_SECONDS``; then they are killed."""
        self._is_stopping = True
        for process in self._running.values():
            if process.stdin is not None:
                process.stdin.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
