"""One running app: what it starts, in which order, and how it stops."""

import asyncio
import importlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from loom.agent import AgentSpec, capabilities_of
from loom.capabilities import Capability
from loom.codec import encode
from loom.config import MEMORY_FACTORY, MODEL_FACTORY, Config, load
from loom.context import HOST, TURN, Context
from loom.directory import EFFECTS
from loom.errors import Cancelled
from loom.limits import AGENT_CONCURRENCY, STOP_SECONDS, SYNC_THREADS
from loom.link import Link, Local, VirtualClock, open_local
from loom.protocols import Memory, Model
from loom.runtime.host import Host, Services
from loom.runtime.pool import Pool
from loom.runtime.serving import Serving
from loom.runtime.turns import Turns

if TYPE_CHECKING:
    from loom.app import App

_CALM_ROUNDS = 12  # a finished future needs two turns of the loop for each task around another
_THREAD_POLL = 0.001  # seconds between two looks at threads, which tell the loop when they end
_logger = logging.getLogger("loom")


@dataclass(slots=True, kw_only=True)
class Running:
    """One app while it runs."""

    services: Services
    host: Host
    pools: list[Pool] = field(default_factory=list[Pool])
    servings: list[Serving] = field(default_factory=list[Serving])
    finished: bool = False
    is_closing: bool = False  # its agents are being stopped: no new one starts
    agents: list[tuple[AgentSpec, Any, Host]] = field(
        default_factory=list[tuple[AgentSpec, Any, Host]]
    )

    @property
    def context(self) -> Context[Any]:
        """The app's own context."""
        return Context(self.host)

    @property
    def engine(self) -> Local:
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
        if any(known.name == spec.name for known, _, _ in self.agents):
            return
        if self.is_closing:
            raise Cancelled("the app is stopping", hint="no agent is started any more")
        agent, host, pools = _register(self, spec)
        self.link.look()
        if hasattr(agent, "on_start"):
            await agent.on_start(Context(host))
        for pool in pools:
            pool.start()

    def is_quiet(self) -> bool:
        """Whether nothing runs and nothing waits to run."""
        return (
            all(pool.is_quiet for pool in self.pools)
            and not self.link.session.pending
            and not self.link.waiting
        )

    def is_calm(self) -> bool:
        """Whether nothing can go on by itself: all that has not ended waits for something."""
        if self.link.session.pending:
            self.link.look()
            return False
        return not self.busy_threads and all(
            pool.is_quiet or pool.blocked_workers() for pool in self.pools
        )

    @property
    def busy_threads(self) -> int:
        """How many synchronous functions run."""
        return sum(serving.busy_threads for serving in self.servings)

    async def quiet(self) -> None:
        """Return once all events that were published have been handled."""
        while not self.is_quiet():
            for pool in self.pools:
                await pool.quiet()
            self.link.look()
            await self.link.settled()
            await asyncio.sleep(0)  # whatever the pools say, the loop goes on

    async def calm(self) -> None:
        """Return once nothing can go on by itself."""
        rounds = 0
        while rounds < _CALM_ROUNDS:
            rounds = rounds + 1 if self.is_calm() else 0
            await asyncio.sleep(_THREAD_POLL if self.busy_threads else 0)

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
    before_start: Callable[[Running], None] | None = None,
    before_close: Callable[[Running], Awaitable[None]] | None = None,
) -> AsyncGenerator[Running]:
    """Start ``app`` on an engine of its own; leaving stops it, at most ``STOP_SECONDS`` later.

    ``before_start`` is called when the engine is there and no agent is yet: who subscribes in it
    misses nothing; ``before_close`` when all work has ended and the engine still knows of it.
    """
    app.check_idle()
    settled = load() if config is None else config
    engine = open_local(virtual=virtual_clock, seed=seed)
    link = engine.attach(app.namespace, app.name)
    made: list[Model] = [] if model is None else [model]

    async def start(spec: AgentSpec) -> None:
        await run.ensure(spec)

    services = Services(
        engine=engine,
        link=link,
        namespace=app.namespace,
        memory=memory or _factory(MEMORY_FACTORY)(engine.clock),
        model=_once(made, lambda: _factory(MODEL_FACTORY)(settled.environment, settled.model)),
        random=random.Random(seed),  # noqa: S311  for choices of user code, not for secrets
        start=start,
    )
    host = Host(
        services=services,
        sender=link.session.root,
        name=app.name,
        log=_bus_logger(f"loom.app.{app.name}"),
        middleware=app.middleware,
    )
    run = Running(services=services, host=host)
    with app.run_by(run):
        try:
            if before_start is not None:
                before_start(run)
            await _start(run, app)
            yield run
        finally:
            await _stop(run, before_close)
            if model is None and made:
                await made[0].aclose()


async def _start(run: Running, app: "App") -> None:
    """Register everything, then start: capabilities, then agent by agent.

    An agent's ``on_start`` finds the app's functions and the agents declared before it at work.
    """
    functions = [_provide(run, capability, app.name) for capability in app.capabilities]
    agents = [_register(run, spec) for spec in app.agents]
    run.link.look()
    for pool in functions:
        pool.start()
    for agent, host, pools in agents:
        if hasattr(agent, "on_start"):
            await agent.on_start(Context(host))
        for pool in pools:
            pool.start()


def _register(run: Running, spec: AgentSpec) -> tuple[Any, Host, list[Pool]]:
    """Register an agent and what it offers; nothing of it runs yet."""
    link = run.link
    agent = spec.make()
    methods = capabilities_of(agent, spec.methods)
    pools = [_provide(run, capability, spec.name) for capability in methods]
    try:
        handle = link.session.register(
            spec.name,
            spec.filters,
            spec.group,
            spec.concurrency,
            _agent_info(spec, methods),
            spec.realtime,
        )
    except link.refusal as error:
        raise link.translate(error) from None
    host = Host(
        services=run.services,
        sender=handle,
        name=spec.name,
        log=_bus_logger(f"loom.agent.{spec.name}"),
        middleware=run.host.middleware + spec.middleware,
        state_type=spec.state_type,
    )
    run.agents.append((spec, agent, host))
    turns = Turns(host, spec, agent)
    name = f"loom agent {spec.name}"
    pool = Pool(link, handle, turns, limit=spec.concurrency, name=name)
    run.pools.append(pool)
    return agent, host, [*pools, pool]


def _provide(run: Running, capability: Capability[..., Any], provider: str) -> Pool:
    """Offer a capability; nothing of it runs yet.

    A plain function gets no more calls at a time than it has threads: the others wait in the
    engine, not started.
    """
    link, terms = run.link, capability.terms
    limit = AGENT_CONCURRENCY if capability.is_async else SYNC_THREADS
    try:
        handle = link.session.provide(
            terms.name,
            terms.version,
            EFFECTS.index(terms.effect),
            limit,
            _capability_info(capability, provider),
            provider,
        )
    except link.refusal as error:
        raise link.translate(error) from None
    run.services.timeouts[terms.name] = terms.timeout
    serving = Serving(run.host, capability)
    run.servings.append(serving)
    pool = Pool(link, handle, serving, limit=limit, name=f"loom capability {terms.name}")
    run.pools.append(pool)
    return pool


async def _stop(run: Running, before_close: Callable[[Running], Awaitable[None]] | None) -> None:
    """Finish what was published, cancel what does not end in time, tell the agents, detach.

    A cancellation on the way (a second Ctrl-C) skips the waiting.
    """
    started = all(pool.has_started for pool in run.pools)
    try:
        if started:
            await run.finish()
    finally:
        run.is_closing = True
        try:
            turns = [pool for pool in run.pools if pool.is_of_agent]
            await asyncio.gather(*(pool.stop() for pool in turns))
            for _, agent, host in run.agents:
                if started and hasattr(agent, "on_stop"):
                    await _finish(agent.on_stop(Context(host)), host.name)
            await asyncio.gather(*(pool.stop() for pool in run.pools))
            if before_close is not None:
                await before_close(run)
        finally:
            for pool in run.pools:
                pool.abandon()
            for serving in run.servings:
                serving.close()
            run.link.close()


async def _finish(ending: Coroutine[Any, Any, None], name: str) -> None:
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await ending
    except Exception:  # the root of user code: the other agents still have to stop
        _logger.exception("on_stop of agent %s failed", name)


def _agent_info(spec: AgentSpec, methods: Sequence[Capability[..., Any]]) -> bytes:
    return encode(
        {
            "name": spec.name,
            "filters": list(spec.filters),
            "group": spec.group,
            "concurrency": spec.concurrency,
            "description": spec.description,
            "capabilities": [capability.name for capability in methods],
        }
    )


def _capability_info(capability: Capability[..., Any], provider: str) -> bytes:
    terms = capability.terms
    return encode(
        {
            "name": terms.name,
            "version": terms.version,
            "effect": terms.effect,
            "timeout": terms.timeout,
            "cost": terms.cost,
            "tags": list(terms.tags),
            "description": capability.description,
            "input": capability.input_schema(),
            "output": capability.output_schema(),
            "streams": capability.streams,
            "needs_approval": terms.needs_approval,
            "provider": provider,
        }
    )


class _BusHandler(logging.Handler):
    """Publishes what is logged through a Context on ``loom.log.<level>``, in the Context's app."""

    def emit(self, record: logging.LogRecord) -> None:
        """Publish one record; what cannot be published stays a record only."""
        host: Host | None = getattr(record, HOST, None)
        if host is None:
            return
        try:
            payload = encode({"message": record.getMessage(), "logger": record.name})
            turn: Any = getattr(record, TURN, None)
            host.session.log(host.sender, turn, record.levelname.lower(), payload)
        except host.link.refusal:
            return  # the app has stopped
        except Exception:  # noqa: BLE001  as the logging module wants it: a log line breaks nothing
            self.handleError(record)


_BUS_HANDLER = _BusHandler(logging.INFO)


def _bus_logger(name: str) -> logging.Logger:
    logger = logging.getLogger(name)
    if _BUS_HANDLER not in logger.handlers:
        logger.addHandler(_BUS_HANDLER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    return logger


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
