"""Random schedules through the public API, held against a model of lanes and outcomes.

The machine publishes, asks, calls and streams; decides when and how each handler ends; cancels who
waits; and moves the clock. After every step: lanes are in order with one turn at a time, none that
could go on stands still, and who has waited has one outcome.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

import loom
from loom.envelope import QoS
from loom.errors import HandlerError
from loom.limits import BREAKER_FAILURES
from loom.testing import Harness

pytestmark = pytest.mark.timeout(120)  # 8,000 steps: seconds alone, many on a busy machine

_CONCURRENCY = 2
_CHUNKS = 200
_LONG = 1_000.0  # seconds that no schedule lasts
_OUTCOMES = {"HANDLER_ERROR", "TIMEOUT", "CANCELLED", "CAPABILITY_ERROR"}

End: TypeAlias = Literal[
    "return", "raise", "exit", "raise cancelled", "cancelled", "cancelled late"
]
_ENDS = st.sampled_from(
    ["return", "return", "raise", "exit", "raise cancelled", "cancelled", "cancelled late"]
)
_CRASHES = ("raise", "exit", "raise cancelled")
_KEYS = st.sampled_from(["a", "b", "c"])


@dataclass(eq=False)
class Sent:
    """One event, request or call that the machine has made."""

    number: int
    key: str
    waiter: "asyncio.Task[Any] | None" = None
    gate: "asyncio.Future[End] | None" = None  # there while its handler runs
    started: bool = False
    told: End | None = None  # how its handler was told to end

    @property
    def is_alive(self) -> bool:
        """Whether its handler has to run: nobody waited for it, or somebody still does."""
        return not self.started and (self.waiter is None or not self.waiter.done())


@dataclass
class Lanes:
    """What one agent was sent, lane by lane, in order."""

    sent: dict[str, list[Sent]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sent: Sent) -> Sent:
        self.sent[sent.key].append(sent)
        return sent

    def running(self) -> list[Sent]:
        return [s for lane in self.sent.values() for s in lane if s.gate is not None]

    def start(self, number: int, gate: "asyncio.Future[End]") -> Sent:
        (found,) = (s for lane in self.sent.values() for s in lane if s.number == number)
        assert not found.started, f"{number} was delivered twice"
        lane = self.sent[found.key]
        later = [s.number for s in lane[lane.index(found) + 1 :] if s.started]
        assert not later, f"{later} of lane {found.key} went before {number}"
        assert not any(s.gate for s in lane), f"two turns at a time in lane {found.key}"
        assert len(self.running()) < _CONCURRENCY, "more turns than the agent's concurrency"
        found.started, found.gate = True, gate
        return found

    def stuck(self) -> list[int]:
        """Return what could run and does not."""
        if len(self.running()) >= _CONCURRENCY:
            return []
        return [
            s.number
            for lane in self.sent.values()
            if not any(s.gate for s in lane)
            for s in lane
            if s.is_alive
        ]


class Schedules(RuleBasedStateMachine):
    """One running app, and what must be true of it."""

    asked: Bundle[Sent] = Bundle("asked")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.lanes = Lanes()
        self.calls: dict[int, asyncio.Future[End]] = {}
        self.waiting: list[tuple[int, asyncio.Task[Any]]] = []
        self.numbers = 0
        self.failures = 0  # at least as many as those that the breakers count
        self.wrong: list[AssertionError] = []
        self.app = self._app()
        self.h = Harness(self.app)

    def _app(self) -> loom.App:
        app = loom.App("schedules")

        @app.agent("worker", topics=["work"], concurrency=_CONCURRENCY)
        async def worker(ctx: loom.Context, event: loom.Event[int]) -> int | None:
            gate: asyncio.Future[End] = asyncio.get_running_loop().create_future()
            try:
                sent = self.lanes.start(event.data, gate)
            except AssertionError as error:
                self.wrong.append(error)
                raise
            try:
                how = await gate
                if how in _CRASHES:  # not this test's: an agent that crashes is restarted
                    raise HandlerError("meant")
                await _end(how)
            finally:
                sent.gate = None
                if sent.told is None:
                    self.wrong.append(AssertionError(f"{sent.number} ended by no doing of its own"))
            return event.data if event.wants_reply else None

        @app.capability("work", effect="pure", timeout=_LONG)
        async def work(number: int) -> int:
            self.calls[number] = asyncio.get_running_loop().create_future()
            try:
                await _end(await self.calls[number])
            finally:
                del self.calls[number]
            return number

        @app.capability("count", effect="pure", timeout=_LONG)
        async def count(fails_at: int) -> AsyncIterator[int]:
            for number in range(_CHUNKS):
                if number == fails_at:
                    raise ValueError
                yield number

        self.work, self.count = work, count
        return app

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def one() -> Any:
            result = await coroutine
            await self.h.idle()
            return result

        return self.runner.run(one())

    def _next(self) -> int:
        self.numbers += 1
        return self.numbers

    def _wait(self, number: int, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = self.runner.get_loop().create_task(coroutine)
        self.waiting.append((number, task))
        return task

    @initialize()
    def start(self) -> None:
        self.runner.run(self.h.__aenter__())

    # -- what can be done -------------------------------------------------------------------------

    @rule(key=_KEYS, qos=st.sampled_from([None, "realtime", "background"]))
    def emit(self, key: str, qos: QoS | None) -> None:
        sent = self.lanes.add(Sent(self._next(), key))
        self._run(self.h.ctx.emit("work", sent.number, key=key, qos=qos))

    @rule(target=asked, key=_KEYS, timeout=st.sampled_from([1.0, 3.0, _LONG]))
    def ask(self, key: str, timeout: float) -> Sent:
        sent = self.lanes.add(Sent(self._next(), key))

        async def ask() -> int:
            answer = await self.h.ctx.request("work", sent.number, key=key, timeout=timeout)
            return answer.data

        sent.waiter = self._wait(sent.number, ask())
        self._run(asyncio.sleep(0))
        return sent

    @rule(target=asked, timeout=st.sampled_from([1.0, _LONG]))
    def call(self, timeout: float) -> Sent:
        number = self._next()
        waiter = self._wait(number, self.h.ctx.tool(self.work.bind(number), timeout=timeout))
        self._run(asyncio.sleep(0))
        return Sent(number, "", waiter)

    @rule(fails_at=st.sampled_from([0, 1, 63, 64, 65, _CHUNKS]), reads=st.integers(0, _CHUNKS))
    def stream(self, fails_at: int, reads: int) -> None:
        async def read() -> None:
            got: list[int] = []
            failed = False
            refused: loom.LoomError | None = None
            self.failures += 1  # the provider may be ahead of who leaves, and fail
            try:
                async with self.h.ctx.stream(self.count.bind(fails_at)) as chunks:
                    async for chunk in chunks:
                        got.append(chunk)
                        if len(got) >= reads:
                            break
            except loom.errors.CapabilityError:
                failed = True
            except loom.errors.ProviderUnavailable as error:
                refused = error
            if refused is not None:
                assert refused.retry_after is not None
                assert self.failures >= BREAKER_FAILURES, refused
                return
            assert got == list(range(len(got)))
            assert failed == (max(reads, 1) > fails_at), (failed, len(got))

        self._run(read())

    @rule(request=consumes(asked))
    def cancel(self, request: Sent) -> None:
        async def cancel() -> None:
            assert request.waiter is not None
            request.waiter.cancel()
            await asyncio.wait([request.waiter])

        self._run(cancel())

    @precondition(lambda self: self.lanes.running() or self.calls)
    @rule(choice=st.integers(0, 9), end=_ENDS)
    def end(self, choice: int, end: End) -> None:
        running = self.lanes.running()
        gates = [s.gate for s in running if s.gate is not None] + list(self.calls.values())
        place = choice % len(gates)
        if place < len(running):
            running[place].told = end
        gates[place].set_result(end)
        self._run(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def advance(self, seconds: float) -> None:
        self._run(self.h.advance(seconds))

    # -- what must be true ------------------------------------------------------------------------

    @invariant()
    def lanes_are_in_order_and_go_on(self) -> None:
        assert not self.wrong, self.wrong
        assert not self.lanes.stuck(), f"{self.lanes.stuck()} could be handled and are not"

    @invariant()
    def who_has_waited_has_one_outcome(self) -> None:
        for number, task in self.waiting:
            if not task.done() or task.cancelled():
                continue
            error = task.exception()
            if error is None:
                assert task.result() == number
            else:
                assert isinstance(error, loom.LoomError), repr(error)
                if error.code == "PROVIDER_UNAVAILABLE":
                    assert error.retry_after is not None
                    assert self.failures >= BREAKER_FAILURES, error
                    continue
                assert error.code in _OUTCOMES, repr(error)
                self.failures += 1
        self.waiting = [(number, task) for number, task in self.waiting if not task.done()]

    def teardown(self) -> None:
        async def finish() -> None:
            while gates := [s.gate for s in self.lanes.running()] + list(self.calls.values()):
                for sent in self.lanes.running():
                    sent.told = "return"
                for gate in gates:
                    if gate is not None and not gate.done():
                        gate.set_result("return")
                await self.h.idle()
            assert not self.wrong, self.wrong
            assert all(task.done() for _, task in self.waiting)
            gauges = self.h.stats()["gauges"]
            left = ("lanes", "leased", "pending", "timers", "parked", "tickets", "inbox")
            assert not any(gauges[name] for name in left), gauges
            await self.h.__aexit__(None, None, None)  # checks the books

        with contextlib.closing(self.runner):
            self.runner.run(finish())
        self.who_has_waited_has_one_outcome()


async def _end(how: End) -> None:
    task = asyncio.current_task()
    assert task is not None
    if how == "raise":
        raise ValueError
    if how == "exit":
        raise SystemExit
    if how == "raise cancelled":
        raise asyncio.CancelledError
    if how == "cancelled":
        task.cancel()
        await asyncio.sleep(0)
    if how == "cancelled late":
        task.cancel()


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, derandomize=True
)
