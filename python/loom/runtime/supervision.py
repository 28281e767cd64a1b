"""One agent of a running app: its object and its pools, and what happens when it crashes.

A crash is ``on_start`` raising, an exception out of a handler that is no ``Exception`` and no
cancellation (SystemExit, say), or ``crash_errors`` errors of handlers within
``crash_window_seconds`` between which fewer turns went well. What a handler raises on purpose, a
LoomError, is none of these: it is an answer. After a crash the agent takes nothing, its turns end,
a new object is made and started after a pause; crashes in a row make the pause longer, and too many
put the agent into quarantine.
"""

import asyncio
import logging
from collections import deque
from dataclasses import replace
from typing import Any, Literal, Self, TypeAlias

from loom.agent import AgentSpec, capabilities_of
from loom.context import Context
from loom.errors import Conflict, HandlerError, LoomError
from loom.limits import (
    CRASH_ERRORS,
    CRASH_WINDOW_SECONDS,
    CRASHES,
    QUARANTINE_WINDOW_SECONDS,
    RESTART_BASE_MS,
    RESTART_CAP_SECONDS,
    STOP_SECONDS,
)
from loom.runtime.host import Host, error_detail, error_number, is_stopped
from loom.runtime.keeping import States
from loom.runtime.pool import Pool, waits
from loom.runtime.registering import bus_logger, pool_of, provide, register
from loom.runtime.serving import Serving
from loom.runtime.turns import Turns

Health: TypeAlias = Literal["up", "restarting", "quarantined"]

_STATES: dict[Health, int] = {"up": 0, "restarting": 1, "quarantined": 2}
_TO_END = 1.0  # seconds of the engine's clock that turns under way have to end after a crash
_LAST_MOMENT = 1.0  # seconds that a supervising task has to end
_logger = logging.getLogger("loom.agent")


class Supervised:
    """An agent at work, under supervision."""

    __slots__ = (
        "_agent",
        "_app",
        "_clock",
        "_crashed_at",
        "_ending",
        "_errors",
        "_freed",
        "_handles",
        "_is_cutting_off",
        "_is_ending",
        "_is_started",
        "_is_stopping",
        "_row",
        "_settled",
        "_stubborn",
        "_task",
        "_turns",
        "crashes",
        "health",
        "host",
        "pools",
        "restarts",
        "servings",
        "spec",
        "start_fault",
    )

    @classmethod
    async def registered(cls, app: Host, spec: AgentSpec) -> Self:
        """Register the agent and what it offers; nothing of it runs yet.

        Raises:
            LoomError: the engine refused it.
        """
        agent: Any = spec.make()
        methods = capabilities_of(agent, spec.methods)
        offered = [await provide(app, capability, spec.name) for capability in methods]
        sender = await register(app.services, spec, methods)
        made = cls(app, spec, agent, sender, offered)
        if made.host.kept is not None:
            await made.host.kept.load()
        return made

    def __init__(
        self,
        app: Host,
        spec: AgentSpec,
        agent: Any,
        sender: int,
        offered: list[tuple[Serving, Pool]],
    ) -> None:
        """Put together what has been registered."""
        self.spec = spec
        self.health: Health = "up"
        self.crashes = 0
        self.restarts = 0
        self.start_fault: BaseException | None = None  # what its next start raises, in tests
        self._app = app
        self._clock = app.services.engine.clock
        self._agent: Any = agent
        self.host = Host(
            services=app.services,
            sender=sender,
            name=spec.name,
            log=bus_logger(f"loom.agent.{spec.name}"),
            middleware=app.middleware + spec.middleware,
            state_type=spec.state_type,
        )
        if spec.state_type is not None and app.services.engine.has_directory:
            self.host.kept = States(self.host)
        self.servings: list[Serving] = [serving for serving, _ in offered]
        self.pools: list[Pool] = [*(pool for _, pool in offered), self._turns_pool()]
        self._handles = [pool.handle for pool in self.pools]
        self._stubborn: list[Pool] = []  # of earlier objects, with tasks that do not end
        # when the last errors were, and how many turns had gone well by then
        self._errors: deque[tuple[float, int]] | None = None
        self._crashed_at: list[float] = []  # within the window
        self._row = 0  # crashes without a whole window between two of them
        self._is_started = False
        self._is_stopping = False
        self._is_ending = False  # turns under way have their moment to end
        self._is_cutting_off = False  # those that did not are being cancelled
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None  # runs on_stop
        self._settled: asyncio.Event | None = None
        self._freed: asyncio.Event | None = None

    def _turns_pool(self) -> Pool:
        self._turns = turns = Turns(self.host, self.spec, self._agent, self.failed)
        name = f"loom agent {self.spec.name}"
        link, limit = self.host.link, self.spec.concurrency
        return Pool(link, self.host.sender, turns, limit=limit, name=name)

    # -- starting and stopping --------------------------------------------------------------------

    async def start(self) -> None:
        """Start it for the first time; an error in ``on_start`` is a crash like any other."""
        try:
            await self._start_agent()
        except BaseException as error:
            if is_stopped(error):
                raise
            self._crashed(error, "on_start")
        else:
            self._start_pools()

    async def _start_agent(self) -> None:
        fault, self.start_fault = self.start_fault, None
        if fault is not None:
            raise fault
        if hasattr(self._agent, "on_start"):
            await self._agent.on_start(Context(self.host))
        self._is_started = True

    def _start_pools(self) -> None:
        for pool in self.pools:
            pool.start()
        for serving, handle in zip(self.servings, self._handles, strict=False):
            serving.listen(handle)

    def abandon(self) -> None:
        """Restart it no more, and do not wait for the end of a restart under way."""
        self._is_stopping = True
        if self._task is not None:
            self._task.cancel()

    async def stop_supervision(self) -> None:
        """Restart it no more."""
        self.abandon()
        if self._task is not None:
            await self._wait_or_give_up(self._task, "the restart")

    async def stop_turns(self) -> None:
        """Cancel what its handlers still do."""
        pools = (pool for pool in self.pools if pool.handle == self.host.sender)
        await asyncio.gather(*(pool.stop() for pool in (*pools, *self._stubborn)))

    async def stop_agent(self, seconds: float) -> None:
        """Run ``on_stop`` if the object was started, at most ``seconds`` long.

        It runs in a task of its own, so that one that swallows its cancellation can be left behind.
        """
        started, self._is_started = self._is_started, False
        if not started or not hasattr(self._agent, "on_stop"):
            return
        name = f"loom on_stop of {self.spec.name}"
        self._ending = asyncio.get_running_loop().create_task(self._end_object(), name=name)
        try:
            await asyncio.wait([self._ending], timeout=max(seconds, 0))
            if not self._ending.done():
                _logger.error("on_stop of agent %s took too long: cancelled", self.spec.name)
                self._ending.cancel()
                await self._wait_or_give_up(self._ending, "on_stop")
        finally:
            self._ending.cancel()  # where this itself is cancelled
            self._ending = None

    async def _end_object(self) -> None:
        try:
            await self._agent.on_stop(Context(self.host))
        except BaseException as error:  # the root of user code: the others still have to stop
            if is_stopped(error):
                raise
            _logger.exception("on_stop of agent %s failed", self.spec.name)

    async def _wait_or_give_up(self, task: asyncio.Task[None], what: str) -> None:
        """Wait a moment for a task that has been cancelled; one that goes on is counted."""
        await asyncio.wait([task], timeout=_LAST_MOMENT)
        if not task.done():
            _logger.warning("%s of agent %s goes on though cancelled", what, self.spec.name)
            self.host.services.gauges.abandon_task(task)

    # -- looking ----------------------------------------------------------------------------------

    async def settled(self) -> None:
        """Return once it is not restarting."""
        if self._settled is not None:
            await self._settled.wait()

    @property
    def is_calm(self) -> bool:
        """Whether supervision cannot go on by itself: it waits for the clock, or for user code."""
        if self._task is None or self._task.done():
            return True
        if self._is_cutting_off:
            return False  # in a second of real time it goes on
        if not self._is_ending:
            return waits(self._task) and (self._ending is None or waits(self._ending))
        quiet = [pool.is_quiet for pool in self.pools]
        return not all(quiet) and all(
            is_quiet or pool.blocked_workers()
            for is_quiet, pool in zip(quiet, self.pools, strict=True)
        )

    # -- crashing ---------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """Hear of what a handler raised that was no LoomError."""
        if not isinstance(error, Exception | asyncio.CancelledError):
            self._crashed(error, "a handler")
            return
        now, done = self._clock.now(), self._app.session.turns_done(self.host.sender)
        if self._errors is None:
            self._errors = deque(maxlen=CRASH_ERRORS)
        self._errors.append((now, done))
        began, done_then = self._errors[0]
        if (
            len(self._errors) == CRASH_ERRORS
            and now - began < CRASH_WINDOW_SECONDS
            and done - done_then < CRASH_ERRORS  # among thousands that go well a few may fail
        ):
            self._crashed(error, f"the last of {CRASH_ERRORS} handlers that failed")

    def _crashed(self, error: BaseException, what: str) -> None:
        """Let it take nothing more, at once, and bring it back in a task of its own."""
        if self._is_stopping or (self._task is not None and not self._task.done()):
            return  # it is being stopped or restarted already
        if self._settled is None:
            self._settled = asyncio.Event()
        recovery = self._recover(self._judge(error, what))
        self._task = asyncio.get_running_loop().create_task(
            recovery, name=f"loom supervision of {self.spec.name}"
        )
        self._task.add_done_callback(self._recovered)

    def _recovered(self, task: asyncio.Task[None]) -> None:
        # a task keeps the error that ended it, its stack, and the Contexts there, which the garbage
        # collector does not follow: kept from here, it would keep the app, and its descriptor
        if self._task is task:
            self._task = None

    async def _recover(self, pause: float | None) -> None:
        """Bring the agent back: end the old object, pause, start a new one, until that works."""
        while True:
            await self._retire()
            if pause is None:
                await self._released()
            else:
                await self._clock.sleep(pause)
            try:
                self._renew()
                await self._start_agent()
            except BaseException as error:
                if is_stopped(error):
                    raise
                pause = self._judge(error, "on_start")
                continue
            if self._is_stopping:
                return  # on_start swallowed its cancellation: the app has stopped without it
            self.restarts += 1
            self._errors = None
            self._set_health("up")
            self._start_pools()
            return

    def _judge(self, error: BaseException, what: str) -> float | None:
        """Count a crash and tell of it; return the pause before the restart, None: quarantine."""
        now = self._clock.now()
        last = self._crashed_at[-1] if self._crashed_at else None
        if last is None or now - last >= QUARANTINE_WINDOW_SECONDS:
            self._row = 0
        self._row += 1
        self._crashed_at = [at for at in self._crashed_at if now - at < QUARANTINE_WINDOW_SECONDS]
        self._crashed_at.append(now)
        self.crashes += 1
        name, count = self.spec.name, len(self._crashed_at)
        told = f"agent {name!r} crashed: {what} raised {type(error).__name__}"
        if isinstance(error, LoomError):
            told += f", {error.message}"
        hint = "see the log of its process"
        way_out = ""
        if count >= CRASHES:
            pause, then = None, f"it is in quarantine after {count} crashes"
            way_out = f"; app.release({name!r}) starts it again"
        else:
            longest = min(RESTART_CAP_SECONDS, RESTART_BASE_MS / 1000 * 2 ** (self._row - 1))
            pause = self.host.services.random.uniform(0, longest)
            then = f"crash {count} of {CRASHES}, it starts again in {pause:.2f} s"
        _logger.error("%s; %s%s", told, then, way_out, exc_info=error)
        self._set_health("quarantined" if pause is None else "restarting")
        self._report(HandlerError(f"{told}; {then}", hint=hint + way_out, who=self._who))
        return pause

    @property
    def _who(self) -> str:
        return f"{self.host.services.namespace}/{self.spec.name}"

    def _report(self, error: HandlerError) -> None:
        session = self._app.session
        session.report(self.host.sender, None, error_number(error), error_detail(error))
        self.host.link.look()

    def _set_health(self, health: Health) -> None:
        self.health = health
        for handle in self._handles:
            self._app.session.set_state(handle, _STATES[health])
        self.host.link.look()
        if self._settled is not None:
            if health == "restarting":
                self._settled.clear()
            else:
                self._settled.set()

    async def _retire(self) -> None:
        """End the old object: its turns and calls, then itself."""
        await self._let_end()
        for serving in self.servings:
            serving.is_retired = True
        self._turns.is_retired = True
        self._is_cutting_off = True
        try:
            await asyncio.gather(*(pool.stop() for pool in self.pools))
        finally:
            self._is_cutting_off = False
        for serving in self.servings:
            serving.close()
        self._stubborn = [pool for pool in (*self._stubborn, *self.pools) if pool.busy]
        self.pools, self.servings = [], []
        await self.stop_agent(STOP_SECONDS)
        self.host.fence()

    async def _let_end(self) -> None:
        """Return when nothing of it is under way, or when its moment has passed."""
        loop = asyncio.get_running_loop()
        over = [loop.create_task(self._quiet()), loop.create_task(self._clock.sleep(_TO_END))]
        self._is_ending = True
        try:
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_ending = False
            for task in over:
                task.cancel()

    async def _quiet(self) -> None:
        for pool in self.pools:
            await pool.quiet()

    def _renew(self) -> None:
        """Make a new object with a host of its own, and pools that run its methods."""
        self.host = replace(self.host)
        if self.host.kept is not None:
            self.host.kept = self.host.kept.of(self.host)  # the old one writes through the fence
        self._agent = self.spec.make()
        methods = capabilities_of(self._agent, self.spec.methods)
        self.servings = [Serving(self._app, capability) for capability in methods]
        offered = zip(self.servings, self._handles, strict=False)
        self.pools = [
            *(pool_of(serving, handle) for serving, handle in offered),
            self._turns_pool(),
        ]

    # -- quarantine -------------------------------------------------------------------------------

    async def _released(self) -> None:
        if self._freed is None:
            self._freed = asyncio.Event()
        await self._freed.wait()
        self._freed = None

    def release(self) -> None:
        """Start it again out of quarantine, as if it had never crashed.

        Raises:
            Conflict: it is not in quarantine.
        """
        if self.health != "quarantined":
            raise Conflict(
                f"agent {self.spec.name!r} is not in quarantine: it is {self.health}",
                field="agent",
                who=self.spec.name,
                hint="app.stats()['runtime']['agents'] tells how each of them fares",
            )
        self._crashed_at, self._row = [], 0
        self._set_health("restarting")
        if self._freed is None:
            self._freed = asyncio.Event()
        self._freed.set()
