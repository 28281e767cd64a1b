"""Runs an app in a test.

Its events are recorded, its clock moves by hand, and leaks are found at the end.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self, cast

from loom.app import App
from loom.checks import check_number, check_text, check_texts
from loom.config import Config, DataDir, LogConfig
from loom.context import Context
from loom.envelope import Event
from loom.errors import InvalidParams, NotSupported
from loom.limits import QUEUE_ITEMS
from loom.link import Link, Local, VirtualClock
from loom.middleware import Item, Next
from loom.protocols import Model
from loom.runtime.running import Running, running
from loom.runtime.stream import Subscription
from loom.testing.stillness import Stillness
from loom.topics import check_filter, matches

_TOLD = ("loom.directory.agent.joined", "loom.directory.agent.changed")
_STILL_SECONDS = 3.0  # real seconds without anything, but for what is to come, before it warns
_PATIENCE = 20.0  # real seconds that idle() waits for what cannot be stepped: threads, sockets


class Crash(BaseException):
    """What ``Harness.crash`` lets an agent crash with."""


class Harness:
    """``async with Harness(app, model=ScriptedModel([…]), clock="virtual", seed=0) as h``.

    With a ``data`` directory the log is there: two harnesses one after the other over one directory
    are a restart. ``durable`` are filters of durable topics, with or without a directory.

    With the virtual clock, engine deadlines, ``ctx.now`` and ``ctx.sleep`` move only by
    ``advance``. Leaving the block runs ``check`` unless the block raised.
    """

    def __init__(
        self,
        app: App,
        *,
        model: Model | None = None,
        clock: Literal["virtual", "system"] = "virtual",
        seed: int = 0,
        data: DataDir | None = None,
        durable: Sequence[str] = (),
        _still_seconds: float = _STILL_SECONDS,
    ) -> None:
        if clock not in ("virtual", "system"):
            raise InvalidParams(
                f"{clock!r} is not a clock", field="clock", hint='use "virtual" or "system"'
            )
        self._app = app
        self._model = model
        self._virtual = clock == "virtual"
        self._seed = seed
        self._data = data
        filters = check_texts(durable, "durable")
        self._durable = tuple(check_filter(one, field="durable") for one in filters)
        self._still_seconds = _still_seconds
        self._stillness: Stillness | None = None
        self._advances = 0
        self._stack = AsyncExitStack()
        self._events: list[Event[Any]] = []
        self._got: dict[str, set[str]] = {}
        self._crashes: dict[str, list[str]] = {}
        self._run: Running | None = None
        self._tap: Subscription | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        log = LogConfig(durable=self._durable)
        config = Config(target="", model="auto", environment={}, origins={}, log=log)
        started = running(
            self._app,
            virtual_clock=self._virtual,
            seed=self._seed,
            model=self._model,
            config=config,
            data=self._data,
            before_start=self._listen,
            middleware=(self._crash_if_told,),
        )
        try:
            self._run = await self._stack.enter_async_context(started)
        except BaseException:
            await self._listen_no_more()
            raise
        return self

    async def _listen_no_more(self) -> None:
        if self._stillness is not None:
            self._stillness.stop()
        if self._tap is not None:
            self._tap.close()
        if self._reader is not None:
            await self._reader

    async def _listen(self, run: Running) -> None:
        self._tap = Subscription(run.link, [">"], qos="batched")
        await self._tap.started()
        self._reader = asyncio.create_task(self._record(self._tap), name="loom harness tap")
        clock = run.engine.clock
        if isinstance(clock, VirtualClock):
            self._stillness = Stillness(
                self._still_seconds,
                is_calm=run.is_calm,
                progress=lambda: (clock.now(), self._advances, len(self._events)),
                due_in=lambda: _due_in(run.link, clock),
            )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                await self.idle()
                self._check_ended()
                self.check()
        finally:
            await self._listen_no_more()
            self._run = None
            await self._stack.aclose()

    # -- acting -----------------------------------------------------------------------------------

    @property
    def ctx(self) -> Context[Any]:
        """The app's own context."""
        return self._running.context

    def crash(self, agent: str, at: str | None = None) -> None:
        """Crash an agent when its next event comes that matches the filter ``at`` (None: any).

        Its handler does not see that event. ``"start"``: its next ``on_start`` crashes instead.

        Raises:
            NotFound: the app has no such agent.
            InvalidParams: ``agent`` is not text, or ``at`` is not a filter.
        """
        found = self._running.agent(check_text(agent, "agent"))
        if at == "start":
            found.start_fault = Crash(f"{agent} was crashed at its start")
            return
        self._crashes.setdefault(agent, []).append(
            check_filter(">" if at is None else at, field="at")
        )

    async def advance(self, seconds: float) -> None:
        """Move the virtual clock by ``seconds``, in steps from one deadline or sleeper to the next.

        Raises:
            InvalidParams: ``seconds`` is negative, or not a finite number.
            NotSupported: the clock is the system's.
        """
        if check_number(seconds, "seconds") < 0:
            raise InvalidParams(f"time does not go back by {-seconds} s", field="seconds")
        clock = self._running.engine.clock
        if not isinstance(clock, VirtualClock):
            raise NotSupported("only a virtual clock can be advanced", field="clock")
        link = self._running.link
        end = clock.now() + seconds
        while True:
            self._advances += 1
            await self.idle()
            due = _due_in(link, clock)
            step = end if due is None else min(clock.now() + due, end)
            clock.advance_to(step)
            link.tick()
            await self.idle()
            if step >= end:
                return

    async def idle(self) -> None:
        """Return when nothing can go on by itself.

        Every turn and call has ended, or waits for the clock or an answer.

        Raises:
            TimeoutError: something keeps running for ``_PATIENCE`` real seconds.
        """
        async with asyncio.timeout(_PATIENCE):
            await self._running.calm()

    # -- looking ----------------------------------------------------------------------------------

    def events(self, pattern: str = ">") -> list[Event[Any]]:
        """Return the events published so far that match ``pattern``, in order.

        Raises:
            InvalidParams: ``pattern`` is not a filter.
            AssertionError: the harness has lost events, as ``check`` says.
        """
        check_filter(pattern, field="pattern")
        self._check_recorded()
        return [event for event in self._events if matches(pattern, event.topic)]

    def calls(self, name: str) -> int:
        """Return how many calls of the capability have been made."""
        stats = cast("list[dict[str, Any]]", self.stats()["capabilities"])
        return sum(int(entry["calls"]) for entry in stats if entry["name"] == name)

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters."""
        return self._running.stats()

    def check(self) -> None:
        """Check the conservation law with two books, and that nothing is left over.

        The engine's book counts what its queues hold by walking them; the other is kept here: every
        event recorded is matched by brute force with the filters of every agent that is alone in
        its group.

        Raises:
            AssertionError: names the subscription whose books do not balance, or what has leaked;
                or the harness itself has lost events, and so cannot tell.
        """
        self._check_recorded()
        audit = cast("Local", self._running.engine).audit()  # it has made one itself
        for entry in audit["subscriptions"]:
            assert entry["balanced"], f"the books of {entry['name']} do not balance: {entry}"
        assert audit["balanced"], audit
        specs = [agent.spec for agent in self._running.agents]
        groups = Counter(spec.group for spec in specs)
        matched = {entry["name"]: entry["matched"] for entry in audit["subscriptions"]}
        for spec in specs:
            if groups[spec.group] > 1:
                continue
            filters = [*spec.filters, f"spawn.{spec.name}"]
            topics = self._topics_for(spec.name)
            expected = sum(n for t, n in topics.items() if any(matches(f, t) for f in filters))
            # out of a log comes what was published before: it has no other book than the engine's
            older = self._data is not None and matched[spec.name] > expected
            assert older or matched[spec.name] == expected, (
                f"agent {spec.name!r} matched {matched[spec.name]} events of {expected} published"
            )
        gauges = self._running.services.gauges
        assert not gauges.threads_abandoned, (
            f"{gauges.threads_abandoned} threads of given-up calls still run"
        )
        assert not gauges.tasks_abandoned, f"{gauges.tasks_abandoned} tasks go on though cancelled"
        assert not gauges.workers_busy, f"{gauges.workers_busy} worker processes still run a call"

    # -- inside -----------------------------------------------------------------------------------

    def _check_recorded(self) -> None:
        """Check that the harness has every event: its queue keeps the newest realtime ones only."""
        own = self.stats()["subscriptions"][0]  # it listens before anything else does
        lost = sum(own["dropped"].values())
        assert not lost, (
            f"the harness lost {lost} realtime events: more than queue_items ({QUEUE_ITEMS}) came "
            "in one burst; let it read in between, with `await h.idle()`"
        )

    def _topics_for(self, agent: str) -> Counter[str]:
        """Count the topics of the events that were published while ``agent`` was there to hear.

        And of those that waited until it was: it has got them.
        """
        found: Counter[str] = Counter()
        got = self._got.get(agent, set[str]())
        hears = False
        for event in self._events:
            if event.topic in _TOLD and event.data["name"] == agent:
                hears = event.data["health"] != "quarantined"
            if hears or event.id in got:
                found[event.topic] += 1
        return found

    @property
    def _running(self) -> Running:
        if self._run is None:
            raise NotSupported(
                "the harness is not running", field="harness", hint="use it in `async with`"
            )
        return self._run

    def _check_ended(self) -> None:
        busy = [f"{pool.busy} of {pool.name}" for pool in self._running.pools if pool.busy]
        assert not busy, (
            f"still at work when the harness was left: {', '.join(busy)}; "
            "advance the clock, or let go what they wait for"
        )

    async def _crash_if_told(self, ctx: Context[Any], item: Item, next_: Next) -> Any:
        if not isinstance(item, Event):
            return await next_(item)
        self._got.setdefault(ctx.agent, set()).add(item.id)
        planned = self._crashes.get(ctx.agent, [])
        found = next((at for at in planned if matches(at, item.topic)), None)
        if found is not None:
            planned.remove(found)
            raise Crash(f"{ctx.agent} was crashed")
        return await next_(item)

    async def _record(self, tap: Subscription) -> None:
        async for event in tap:
            self._events.append(event)


def _due_in(link: Link, clock: VirtualClock) -> float | None:
    """Return the seconds until the engine's next deadline or the first sleeper, None: none."""
    remaining, wake = link.tick(), clock.next_wake()
    due = [] if remaining is None else [remaining]
    if wake is not None:
        due.append(wake - clock.now())
    return min(due, default=None)
