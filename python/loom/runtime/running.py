"""One running app: what it starts, in which order, and how it stops."""

import asyncio
import importlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from loom.address import Trust, settle
from loom.agent import AgentSpec
from loom.config import MEMORY_FACTORY, MODEL_FACTORY, Config, DataDir, load, log_of
from loom.context import Context
from loom.errors import Cancelled, InvalidParams, NotFound
from loom.limits import LOOP_STALL_SECONDS, STOP_SECONDS
from loom.link import Engine, Link, VirtualClock, open_local, open_remote
from loom.middleware import Middleware
from loom.protocols import Memory, Model
from loom.runtime.host import Host, Services
from loom.runtime.keeping import keeper_of
from loom.runtime.pool import Pool
from loom.runtime.registering import bus_logger, provide
from loom.runtime.serving import Serving
from loom.runtime.steps import Steps
from loom.runtime.supervision import Supervised
from loom.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from loom.app import App

_CALM_ROUNDS = 12  # a finished future needs two turns of the loop for each task around another
_POLL = 0.001  # seconds between two looks at threads and processes, which tell of their end
_NAMED = 10  # agents that an error names
_logger = logging.getLogger("loom")


@dataclass(slots=True, kw_only=True)
class Running:
    """One app while it runs."""

    services: Services
    host: Host
    functions: list[tuple[Serving, Pool]] = field(default_factory=list[tuple[Serving, Pool]])
    agents: list[Supervised] = field(default_factory=list[Supervised])
    started: bool = False
    finished: bool = False
    is_closing: bool = False  # its agents are being stopped: no new one starts
    ensuring: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pools(self) -> list[Pool]:
        """What takes turns and invocations."""
        own = [pool for _, pool in self.functions]
        return [*own, *(pool for agent in self.agents for pool in agent.pools)]

    @property
    def servings(self) -> list[Serving]:
        """What runs capabilities."""
        own = [serving for serving, _ in self.functions]
        return [*own, *(serving for agent in self.agents for serving in agent.servings)]

    def forget(self) -> None:
        """Let go of user code: an object that keeps its Context would keep the stopped app.

        The garbage collector does not follow Contexts, so the cycle is broken here.
        """
        self.agents.clear()
        self.functions.clear()

    @property
    def context(self) -> Context[Any]:
        """The app's own context."""
        return Context(self.host)

    @property
    def engine(self) -> Engine:
        """The engine it runs on."""
        return self.services.engine

    @property
    def link(self) -> Link:
        """Its link to the engine."""
        return self.services.link

    async def ensure(self, spec: AgentSpec) -> None:
        """Start an agent unless one of its name is there.

        Raises:
            Cancelled: the app is stopping.
        """
        async with self.ensuring:
            if any(known.spec.name == spec.name for known in self.agents):
                return
            if self.is_closing:
                raise Cancelled("the app is stopping", hint="no agent is started any more")
            agent = await Supervised.registered(self.host, spec)
            self.agents.append(agent)
        self.link.look()
        await agent.start()

    def is_quiet(self) -> bool:
        """Whether nothing runs and nothing waits to run."""
        return (
            all(pool.is_quiet for pool in self.pools)
            and all(agent.health != "restarting" for agent in self.agents)
            and not self.link.session.pending
            and not self.link.waiting
            and not self.engine.is_logging
        )

    def is_calm(self) -> bool:
        """Whether nothing can go on by itself: all that has not ended waits for something."""
        if self.link.session.pending:
            self.link.look()
            return False
        return (
            not self.services.gauges.busy_outside
            and not self.engine.is_logging
            and all(pool.is_quiet or pool.blocked_workers() for pool in self.pools)
            and all(agent.is_calm for agent in self.agents)
        )

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters, and those of what runs user code."""
        agents = {
            agent.spec.name: {
                "health": agent.health,
                "crashes": agent.crashes,
                "restarts": agent.restarts,
            }
            for agent in self.agents
        }
        return {
            **self.engine.stats(),
            "link": self.link.stats(),
            "runtime": {"agents": agents, **self.services.gauges.shown()},
        }

    def agent(self, name: str) -> Supervised:
        """Return the agent of that name.

        Raises:
            NotFound: there is none.
        """
        names = [agent.spec.name for agent in self.agents]
        if name in names:
            return self.agents[names.index(name)]
        close = get_close_matches(name, names, 1)
        known = f"agents here: {', '.join(names[:_NAMED]) or 'none'}"
        raise NotFound(
            f"there is no agent {name!r}",
            field="agent",
            hint=f"did you mean {close[0]!r}?" if close else known,
        )

    async def quiet(self) -> None:
        """Return once all events that were published have been handled."""
        while not self.is_quiet():
            for pool in self.pools:
                await pool.quiet()
            for agent in self.agents:
                await agent.settled()
            self.link.look()
            await self.link.settled()
            # whatever the pools say, the loop goes on
            await asyncio.sleep(_POLL if self.engine.is_logging else 0)

    async def calm(self) -> None:
        """Return once nothing can go on by itself."""
        rounds = 0
        while rounds < _CALM_ROUNDS:
            rounds = rounds + 1 if self.is_calm() else 0
            outside = self.services.gauges.busy_outside or self.engine.is_logging
            await asyncio.sleep(_POLL if outside else 0)

    async def finish(self) -> None:
        """Let what was published be handled, at most ``STOP_SECONDS`` long.

        On a virtual clock, which nobody moves any more, this ends as soon as nothing goes on by
        itself. A second time it waits no more.
        """
        if self.finished:
            return
        self.finished = True
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if isinstance(self.engine.clock, VirtualClock):
                    await self.calm()
                else:
                    await self.quiet()
        except TimeoutError:
            busy = ", ".join(pool.name for pool in self.pools if pool.busy)
            _logger.warning("cut off after %d s: %s", STOP_SECONDS, busy)


@asynccontextmanager
async def running(
    app: "App",
    *,
    virtual_clock: bool = False,
    seed: int | None = None,
    model: Model | None = None,
    memory: Memory | None = None,
    config: Config | None = None,
    data: DataDir | None = None,
    url: str | None = None,
    token: str | None = None,
    trust: Trust | None = None,
    keep: float = 0.0,
    accept_loss: bool = False,
    middleware: Sequence[Middleware] = (),
    loop_stall: float = LOOP_STALL_SECONDS,
    before_start: Callable[[Running], Awaitable[None]] | None = None,
    before_close: Callable[[Running], Awaitable[None]] | None = None,
) -> AsyncGenerator[Running]:
    """Start ``app``; leaving stops it, at most ``STOP_SECONDS`` later.

    It runs on an engine of its own, or on that of the node at ``url``, by default what LOOM_URL
    names, which keeps its session for ``keep`` seconds when its connection is gone (0: as the node
    does). ``data`` is the data directory, by default that of ``config``; ``accept_loss`` goes on
    behind damage of its log. ``before_start`` is called when the engine is there and no agent is
    yet: who subscribes in it misses nothing; ``before_close`` when all work has ended and the
    engine still knows of it.
    """
    app.check_idle()
    settled = load() if config is None else config
    node = _node_of(settled, url, token, data)
    trusted = node and (trust or Trust()).settled(node[0], settled.environment)
    if node is None:
        log = log_of(settled, data)
        engine: Engine = open_local(
            virtual=virtual_clock, seed=seed, log=log, accept_loss=accept_loss
        )
    else:
        engine = open_remote(*node, keep=keep, trust=trusted)
    try:
        await engine.open(app.namespace)
        link = engine.attach(app.namespace, app.name)
        await link.connected()
    except BaseException:
        await engine.close()
        raise
    made: list[Model] = [] if model is None else [model]

    async def start(spec: AgentSpec) -> None:
        await run.ensure(spec)

    keeps = memory or _factory(MEMORY_FACTORY)(engine.clock, await keeper_of(link, engine))
    answers = _once(made, lambda: _factory(MODEL_FACTORY)(settled.environment, settled.model))
    chance = random.Random(seed)  # noqa: S311  for choices of user code, not for secrets
    services = Services(
        engine=engine,
        link=link,
        namespace=link.namespace,
        memory=keeps,
        model=answers,
        random=chance,
        start=start,
        steps=Steps(engine, link, link.namespace, keeps, answers, chance),
    )
    host = Host(
        services=services,
        sender=link.session.root,
        name=app.name,
        log=bus_logger(f"loom.app.{app.name}"),
        middleware=(*middleware, *app.middleware),
    )
    run = Running(services=services, host=host)
    watchdog = Watchdog(host, loop_stall)
    with app.run_by(run):
        try:
            watchdog.start()
            if before_start is not None:
                await before_start(run)
            await _start(run, app)
            yield run
        finally:
            try:
                await _stop(run, before_close)
            finally:
                watchdog.stop()
                await engine.close()
            if model is None and made:
                await made[0].aclose()


def _node_of(
    config: Config, url: str | None, token: str | None, data: DataDir | None
) -> tuple[str, str] | None:
    """Return url and token of the node to run on; None: an engine of this process.

    Raises:
        InvalidParams: both a node and a data directory were given, or the url is none.
        LoomError: there is no such node, or no token for it.
    """
    if url is None and token is None and (data is not None or config.url is None):
        return None
    if data is not None:
        raise InvalidParams(
            "an app at a node has no data directory: the log is the node's",
            field="data",
            hint="`loom up --data DIR` keeps it there",
        )
    return settle(url, token, runtime=config.runtime, variables=config.environment)


async def _start(run: Running, app: "App") -> None:
    """Register everything, then start: capabilities, then agent by agent.

    An agent's ``on_start`` finds the app's functions and the agents declared before it at work.
    """
    for capability in app.capabilities:
        run.functions.append(await provide(run.host, capability, app.name))
    for spec in app.agents:
        run.agents.append(await Supervised.registered(run.host, spec))
    run.link.look()
    for serving, pool in run.functions:
        pool.start()
        serving.listen(pool.handle)
    for agent in run.agents:
        await agent.start()
    run.started = True


async def _stop(run: Running, before_close: Callable[[Running], Awaitable[None]] | None) -> None:
    """Finish what was published, cancel what does not end in time, tell the agents, detach.

    A cancellation on the way (a second Ctrl-C) skips the waiting.
    """
    try:
        if run.started:
            await run.finish()
    finally:
        run.is_closing = True
        try:
            await asyncio.gather(*(agent.stop_supervision() for agent in run.agents))
            await asyncio.gather(*(agent.stop_turns() for agent in run.agents))
            if run.started:
                deadline = asyncio.get_running_loop().time() + STOP_SECONDS
                for agent in run.agents:
                    await agent.stop_agent(deadline - asyncio.get_running_loop().time())
            await asyncio.gather(*(pool.stop() for pool in run.pools))
            await asyncio.gather(*(serving.stop() for serving in run.servings))
            if before_close is not None:
                await before_close(run)
        finally:
            for agent in run.agents:
                agent.abandon()
            for pool in run.pools:
                pool.abandon()
            for serving in run.servings:
                serving.close()
            run.link.close()
            run.forget()


def _factory(path: str) -> Callable[..., Any]:
    """Return what ``module:name`` names.

    Rooms above this one are plugged in by configuration, not imported.
    """
    module, _, name = path.partition(":")
    return cast("Callable[..., Any]", getattr(importlib.import_module(module), name))


def _once(made: list[Model], make: Callable[[], Model]) -> Callable[[], Model]:
    """Return what gives the one model of ``made``, making it at its first use."""

    def model() -> Model:
        if not made:
            made.append(make())
        return made[0]

    return model
