"""The App: a set of agents and capabilities, and the ways to run it. Making one does no I/O."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from loom.agent import Agent, AgentSpec, Handler, spec_of
from loom.capabilities import Capability, FunctionDecorator, Isolation, Terms
from loom.checks import check_text, check_texts
from loom.directory import Effect
from loom.effects import Effects
from loom.envelope import Event, Start
from loom.errors import Conflict, InvalidParams, NotSupported
from loom.limits import AGENT_CONCURRENCY, MAX_DELIVER
from loom.middleware import Middleware, check_middleware
from loom.routes import Routes
from loom.topics import check_name

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from loom.address import File
    from loom.config import DataDir
    from loom.context import Context
    from loom.runtime.running import Running

A = TypeVar("A", bound=Agent[Any])
F = TypeVar("F", bound="Callable[[Context[Any], Event[Any]], Awaitable[Any]]")


class App:
    """A set of agents and capabilities in one namespace."""

    def __init__(
        self, name: str, *, namespace: str = "default", middleware: Sequence[Middleware] = ()
    ) -> None:
        """Name the app.

        ``middleware`` stands around its handlers and the calls that it makes, the first outermost.

        Raises:
            InvalidParams: a name is not made of lower-case letters, digits, '_', '-' and dots; a
                middleware is not an async function.
        """
        self.name: str = check_name(name)
        self.namespace: str = check_name(namespace, field="namespace")
        self.middleware: tuple[Middleware, ...] = check_middleware(middleware)
        self.agents: list[AgentSpec] = []
        self.capabilities: list[Capability[..., Any]] = []
        self.routes: Routes = Routes()
        self.effects: Effects = Effects()
        self._running: Running | None = None

    # -- what it consists of ----------------------------------------------------------------------

    def agent(
        self,
        name: str,
        *,
        topics: Sequence[str] = (),
        group: str | None = None,
        concurrency: int = AGENT_CONCURRENCY,
        qos: Literal["realtime"] | None = None,
        durable: bool = False,
        exclusive: bool = False,
        start: Start = "now",
        max_deliver: int = MAX_DELIVER,
        version: str = "",
    ) -> "AgentDecorator":
        """Add the decorated class or async function ``(ctx, event)`` as an agent.

        ``topics`` are filters; of a ``group`` one member gets each event (default: the agent's
        name); at most ``concurrency`` of its events are handled at a time, events of one key or
        thread one after the other. ``qos="realtime"`` lowers the class of all it hears: its queue
        keeps the newest, and no sender waits for it. ``version`` is recorded with its turns.

        Of durable events a group that is new begins with those that come; ``start="beginning"``,
        a position or a time lets it begin with older ones. One that has begun goes on where it
        was. What a handler could not do after ``max_deliver`` attempts becomes a dead letter.

        Several processes may offer an agent: they share its events. An ``exclusive`` one is alone:
        the newest takes its place, and the turns of the older are fenced.

        Raises:
            InvalidParams: names what is wrong in the declaration.
            Conflict: the app has an agent of that name.
            NotSupported: ``durable`` agents are not built yet.
        """
        check_name(name)

        def keep(target: type[Agent[Any]] | Handler) -> None:
            self._add_agent(
                spec_of(
                    target,
                    name,
                    topics=topics,
                    group=group,
                    concurrency=concurrency,
                    qos=qos,
                    durable=durable,
                    exclusive=exclusive,
                    start=start,
                    max_deliver=max_deliver,
                    version=version,
                )
            )

        return AgentDecorator(keep)

    def capability(
        self,
        name: str,
        *,
        effect: Effect = "unsafe",
        timeout: float = 30.0,
        version: str = "1",
        cost: float = 0.0,
        tags: Sequence[str] = (),
        needs_approval: bool = False,
        isolation: Isolation = "auto",
    ) -> FunctionDecorator:
        """Offer the decorated function under ``name``.

        Its hints are its schemas, its docstring its description.

        ``effect`` says what a call changes outside, and so whether it may be repeated; ``timeout``
        in seconds.

        Raises:
            InvalidParams: the name, effect class or timeout is wrong.
            Conflict: the app offers that version of a capability of that name.
            NotSupported: it asks for what is not built yet.
        """
        terms = Terms(
            name=name,
            effect=effect,
            timeout=timeout,
            version=version,
            cost=cost,
            tags=check_texts(tags, "tags"),
            needs_approval=needs_approval,
            isolation=isolation,
        )
        return FunctionDecorator(terms, self._add_capability)

    def include(self, other: "App") -> None:
        """Add all agents and capabilities of ``other``, which stays as it is.

        Its agents keep its middleware, inside that of this app.

        Raises:
            Conflict: both have an agent of the same name, or the same version of a capability.
        """
        if not isinstance(other, App):  # pyright: ignore[reportUnnecessaryIsInstance]  untyped callers
            raise InvalidParams(f"{other!r} is not an App", field="other")
        for spec in other.agents:
            self._check_agent(spec.name)
        for capability in other.capabilities:
            self._check_capability(capability)
        inner = other.middleware
        self.agents.extend(replace(a, middleware=inner + a.middleware) for a in other.agents)
        self.capabilities.extend(other.capabilities)

    def _add_agent(self, spec: AgentSpec) -> None:
        self._check_agent(spec.name)
        self.agents.append(spec)

    def _check_agent(self, name: str) -> None:
        if any(known.name == name for known in self.agents):
            raise Conflict(
                f"app {self.name!r} has an agent called {name!r} already",
                field="name",
                hint="names of agents are unique in an app",
            )

    def _add_capability(self, capability: Capability[..., Any]) -> None:
        self._check_capability(capability)
        self.capabilities.append(capability)

    def _check_capability(self, capability: Capability[..., Any]) -> None:
        new = (capability.name, capability.version)
        if any((known.name, known.version) == new for known in self.capabilities):
            raise Conflict(
                f"app {self.name!r} offers version {new[1]} of {new[0]!r} already",
                field="name",
                hint='rename one of them, or give it another version="…"',
            )

    # -- running ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(
        self,
        *,
        data: "DataDir | None" = None,
        url: str | None = None,
        token: str | None = None,
        ca: "File | None" = None,
        cert: "File | None" = None,
        cert_key: "File | None" = None,
    ) -> "AsyncGenerator[Context[Any]]":
        """Run the app while the block runs: ``async with app.running() as ctx``.

        Leaving it lets the agents finish what was published, within ``stop_seconds``.

        Args:
            data: the data directory of the log, by default that of the configuration; without
                either the log is in memory, and what is durable ends with the process.
            url: the node to run on, by default what LOOM_URL names; without either the app has an
                engine of its own. ``local`` is the node that runs for this user.
            token: the credential for the node; not needed for that of this user.
            ca: for ``looms`` and ``wss``: the file of who vouches for the node's certificate,
                PEM; by default LOOM_CA, else those whom the system trusts.
            cert: the file of the certificate that a node is shown that asks for one, PEM; by
                default LOOM_CERT.
            cert_key: the file of its key, which only its owner may read; by default LOOM_CERT_KEY.

        Raises:
            Unavailable: nobody answers at ``url``.
            Unauthenticated: there is no token for it, or the node does not take it.
            LoomError: an agent's or capability's registration was refused; or the log cannot be
                opened: another engine has it (CONFLICT), it is damaged (INTERNAL) …
            NotSupported: the app is running already.
        """
        from loom.address import Trust
        from loom.runtime.running import running

        trust = Trust(ca=ca, cert=cert, cert_key=cert_key)
        async with running(self, data=data, url=url, token=token, trust=trust) as run:
            yield run.context

    def check_idle(self) -> None:
        """Refuse to run twice at a time.

        Raises:
            NotSupported: the app is running already.
        """
        if self._running is not None:
            raise NotSupported(
                f"app {self.name!r} is running already",
                field="app",
                hint="use the ctx that you were given; an app runs once at a time",
            )

    @contextmanager
    def run_by(self, run: "Running") -> "Generator[None]":
        """Know what the app runs as while the block runs; for what starts apps, not for users.

        Raises:
            NotSupported: the app is running already.
        """
        self.check_idle()
        self._running = run
        self.routes.bind(run.engine.routes(run.link, self.namespace))
        self.effects.bind(run.engine.ledger(run.link, self.namespace))
        try:
            yield
        finally:
            self.routes.bind(None)
            self.effects.bind(None)
            self._running = None

    async def serve(
        self,
        *,
        data: "DataDir | None" = None,
        url: str | None = None,
        token: str | None = None,
        ca: "File | None" = None,
        cert: "File | None" = None,
        cert_key: "File | None" = None,
    ) -> None:
        """Run the app until this task is cancelled; the arguments are those of ``running``."""
        trusted = {"ca": ca, "cert": cert, "cert_key": cert_key}
        async with self.running(data=data, url=url, token=token, **trusted):
            await asyncio.get_running_loop().create_future()

    def run(
        self,
        *,
        data: "DataDir | None" = None,
        url: str | None = None,
        token: str | None = None,
        ca: "File | None" = None,
        cert: "File | None" = None,
        cert_key: "File | None" = None,
    ) -> None:
        """Run the app until Ctrl-C or SIGTERM; the arguments are those of ``running``.

        The first lets it finish, a second one ends it at once.
        """
        try:
            trusted = {"ca": ca, "cert": cert, "cert_key": cert_key}
            started = partial(self.running, data=data, url=url, token=token, **trusted)
            asyncio.run(self._until_signalled(started))
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGINT) from None

    async def _until_signalled(
        self, started: "Callable[[], AbstractAsyncContextManager[object]]"
    ) -> None:
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        stop = asyncio.Event()

        def told() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told)
        try:
            async with started():
                await stop.wait()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def stats(self) -> dict[str, Any]:
        """Return the counters of the running engine; their shape stands in docs/stats.md.

        Raises:
            NotSupported: the app is not running.
        """
        return self._run_now().stats()

    def release(self, agent: str) -> None:
        """Let an agent out of quarantine: it starts again, with a new object.

        Raises:
            NotFound: the app has no agent of that name.
            Conflict: it is not in quarantine.
            NotSupported: the app is not running.
        """
        self._run_now().agent(check_text(agent, "agent")).release()

    def _run_now(self) -> "Running":
        if self._running is None:
            raise NotSupported(
                f"app {self.name!r} is not running",
                field="app",
                hint="look while it runs: inside app.running(), a handler, or main",
            )
        return self._running


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    token: str | None = None,
    name: str = "client",
    namespace: str | None = None,
    ca: "File | None" = None,
    cert: "File | None" = None,
    cert_key: "File | None" = None,
) -> "AsyncGenerator[Context[Any]]":
    """Connect to a node while the block runs: ``async with loom.connect() as ctx``.

    What the Context does, it does as ``namespace/name``. To offer agents or capabilities, run an
    App: ``app.running(url=…)``.

    Args:
        url: where the node is, such as ``loom://127.0.0.1:7420``; by default what LOOM_URL names,
            else the node that runs for this user.
        token: the credential; by default LOOM_TOKEN, else that of the user's own node.
        name: who this program is.
        namespace: where it works; by default that of the token, else ``default``.
        ca: for ``looms`` and ``wss``: the file of who vouches for the node's certificate,
            PEM; by default LOOM_CA, else those whom the system trusts.
        cert: the file of the certificate that a node is shown that asks for one, PEM; by
            default LOOM_CERT.
        cert_key: the file of its key, which only its owner may read; by default LOOM_CERT_KEY.

    Raises:
        InvalidParams: the url, the name or the namespace is none.
        NotFound: no url was given, and no node runs for this user.
        Unauthenticated: there is no token for that node, or the node does not take it.
        Denied: the token is for another namespace.
        Unavailable: nobody answers there.
    """
    from loom.address import Trust
    from loom.config import load
    from loom.runtime.running import running

    config = load()
    client = App(name, namespace="default" if namespace is None else namespace)
    if namespace is None:
        client.namespace = ""  # the node fills in that of the token
    trust = Trust(ca=ca, cert=cert, cert_key=cert_key)
    to = url or config.url or "local"
    async with running(client, config=config, url=to, token=token, trust=trust) as run:
        yield run.context


class AgentDecorator:
    """What ``@app.agent(…)`` returns.

    It takes a class derived from Agent, or an async function ``(ctx, event)``.
    """

    def __init__(self, keep: "Callable[[Any], None]") -> None:
        self._keep = keep

    @overload
    def __call__(self, target: type[A]) -> type[A]: ...
    @overload
    def __call__(self, target: F) -> F: ...
    def __call__(self, target: Any) -> Any:
        """Add the agent and give it back."""
        self._keep(target)
        return target
