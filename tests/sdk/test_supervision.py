"""Agents that crash: told of, started again after a pause, put into quarantine, and released."""

import asyncio
import gc
import logging
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import loom
from loom.errors import Indeterminate, NotFound, ProviderUnavailable
from loom.testing import Harness


class Crashes:
    """An app with one agent that fails as it is told, and one beside it."""

    def __init__(self) -> None:  # noqa: C901  all ways to fail
        self.app = loom.App("crashes")
        self.life: list[str] = []
        self.seen: list[Any] = []
        self.fails_to_start = 0
        self.gate = asyncio.Event()
        outer = self

        @self.app.agent("worker", topics=["job"], concurrency=4)
        class Worker(loom.Agent[dict[str, int]]):
            def __init__(self) -> None:
                self.handled = 0

            async def on_start(self, ctx: loom.Context) -> None:
                outer.life.append("start")
                if outer.fails_to_start:
                    outer.fails_to_start -= 1
                    raise RuntimeError("a secret: hunter2")

            async def on_event(self, ctx: loom.Context, event: loom.Event[Any]) -> Any:
                ctx.state["n"] = ctx.state.get("n", 0) + 1
                if event.data == "exit":
                    raise SystemExit(3)
                if event.data == "error":
                    raise ValueError("a secret: hunter2")
                if event.data == "meant":
                    raise NotFound("no such job")
                if event.data == "wait":
                    await outer.gate.wait()
                if event.data == "sleep":
                    await ctx.sleep(3600)
                self.handled += 1
                outer.seen.append(event.data)
                return (self.handled, ctx.state["n"]) if event.wants_reply else None

            @loom.capability("worker.handled", effect="pure")
            async def count(self) -> int:
                return self.handled

            async def on_stop(self, ctx: loom.Context) -> None:
                outer.life.append("stop")

        @self.app.agent("other", topics=["ask"])
        async def other(ctx: loom.Context, event: loom.Event[Any]) -> Any:
            return event.data


def agent_of(h: Harness, name: str = "worker") -> dict[str, Any]:
    return h.stats()["runtime"]["agents"][name]


async def health_of(h: Harness) -> dict[str, str]:
    return {info.name: info.health for info in await h.ctx.agents()}


@pytest.mark.requirement("CRASH-RESTART", "CRASH-TOLD")
async def test_an_agent_that_exits_is_started_again_and_its_events_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        await h.ctx.emit("job", 1, key="a")
        await h.ctx.emit("job", "exit", key="a")
        await h.ctx.emit("job", 2, key="a")
        await h.idle()
        assert made.seen == [1]
        assert made.life == ["start", "stop"]
        assert agent_of(h)["health"] == "restarting"
        assert await health_of(h) == {"worker": "restarting", "other": "up"}
        assert (await h.ctx.request("ask", "still here")).data == "still here"

        await h.advance(0.1)
        assert made.seen == [1, 2]
        assert made.life == ["start", "stop", "start"]
        assert agent_of(h) == {"health": "up", "crashes": 1, "restarts": 1}
        assert await health_of(h) == {"worker": "up", "other": "up"}
        turn, crash = h.events("loom.error.handler_error")
        changed = h.events("loom.directory.agent.changed")

    assert turn.data["message"] == "agent 'worker' raised SystemExit"
    assert "a handler raised SystemExit; crash 1 of 5, it starts again in" in crash.data["message"]
    assert crash.data["who"] == "default/worker"
    assert [event.data["health"] for event in changed] == ["restarting", "up"]
    logged = [r for r in caplog.records if "crashed" in r.message]
    assert logged[0].exc_info is not None


@pytest.mark.requirement("CRASH-RESTART")
async def test_a_new_object_serves_after_a_crash_and_the_states_stay() -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        assert (await h.ctx.request("job", "a", key="k")).data == [1, 1]
        assert await h.ctx.tool("worker.handled") == 1
        await h.ctx.emit("job", "exit", key="x")
        await h.advance(0.1)
        assert await h.ctx.tool("worker.handled") == 0
        assert (await h.ctx.request("job", "b", key="k")).data == [1, 2]
        assert await h.ctx.tool("worker.handled") == 1


@pytest.mark.requirement("CRASH-RESTART")
async def test_five_errors_within_a_minute_are_a_crash_and_meant_ones_are_none() -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        for _ in range(20):
            await h.ctx.emit("job", "meant")
        for _ in range(4):
            await h.ctx.emit("job", "error")
        await h.advance(61)
        for _ in range(4):
            await h.ctx.emit("job", "error")
        await h.idle()
        assert agent_of(h)["crashes"] == 0
        await h.ctx.emit("job", "error")
        await h.advance(0.1)
        assert agent_of(h) == {"health": "up", "crashes": 1, "restarts": 1}
        told = [e.data["message"] for e in h.events("loom.error.handler_error")]

    assert "hunter2" not in "".join(told)


@pytest.mark.requirement("CRASH-RESTART")
async def test_a_busy_agent_that_fails_now_and_then_goes_on() -> None:
    app = loom.App("busy")

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event[int]) -> None:
        if event.data % 10 == 0:
            raise ValueError

    async with Harness(app) as h:
        for number in range(500):
            await h.ctx.emit("job", number)
        await h.idle()
        assert agent_of(h, "worker") == {"health": "up", "crashes": 0, "restarts": 0}
        for _ in range(5):
            await h.ctx.emit("job", 0)
        await h.advance(0.1)
        assert agent_of(h, "worker")["crashes"] == 1


@pytest.mark.requirement("CRASH-RESTART")
async def test_data_that_does_not_fit_never_crashes_an_agent() -> None:
    app = loom.App("misfits")

    @app.agent("typed", topics=["n"])
    async def typed(ctx: loom.Context, event: loom.Event[int]) -> None: ...

    async with Harness(app) as h:
        for _ in range(50):
            await h.ctx.emit("n", "not a number")
        await h.idle()
        assert agent_of(h, "typed")["crashes"] == 0


@pytest.mark.requirement("CRASH-RESTART")
async def test_turns_under_way_get_a_moment_to_end_and_are_then_cut_off() -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        await h.ctx.emit("job", "wait", key="a")
        sleeping = asyncio.create_task(h.ctx.request("job", "sleep", key="b", timeout=7200))
        await h.idle()
        await h.ctx.emit("job", "exit", key="c")
        await h.idle()
        assert made.life == ["start"]
        made.gate.set()
        await h.idle()
        assert made.seen == ["wait"]
        await h.advance(2)
        with pytest.raises(loom.LoomError) as caught:
            await sleeping
        assert made.life == ["start", "stop", "start"]

    assert caught.value.code == "CANCELLED"


@pytest.mark.requirement("CRASH-START")
async def test_an_error_in_on_start_keeps_no_app_from_running_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Crashes()
    made.fails_to_start = 2
    async with Harness(made.app) as h:
        assert (await h.ctx.request("ask", "runs")).data == "runs"
        await h.ctx.emit("job", "early")
        await h.idle()
        assert made.seen == []
        assert agent_of(h) == {"health": "restarting", "crashes": 1, "restarts": 0}
        await h.advance(1)
        assert made.seen == ["early"]
        assert agent_of(h) == {"health": "up", "crashes": 2, "restarts": 1}

    assert made.life == ["start", "start", "start", "stop"]  # nothing stops what never started
    (first, _) = (r for r in caplog.records if r.levelno == logging.ERROR)
    assert "agent 'worker' crashed: on_start raised RuntimeError" in first.message
    assert first.exc_info is not None


@pytest.mark.requirement("CRASH-QUARANTINE", "CRASH-PLANTED")
async def test_a_crash_loop_backs_off_then_is_quarantined_and_can_be_released() -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        pauses: list[float] = []
        for _ in range(4):
            h.crash("worker")
            await h.ctx.emit("job", "crash")
            await h.idle()
            crashed = h.ctx.now()
            while agent_of(h)["health"] == "restarting":
                await h.advance(0.01)
            pauses.append(h.ctx.now() - crashed)
        for number, pause in enumerate(pauses):
            assert pause <= 0.1 * 2**number + 0.011
        assert max(pauses) > 0.12  # as this seed has it: longer than any first pause
        h.crash("worker", at="job")
        await h.ctx.emit("job", "last", key="one")
        await h.ctx.emit("job", "queued", key="one")  # after it: beside it, it might have begun
        await h.idle()
        assert await health_of(h) == {"worker": "quarantined", "other": "up"}
        await h.advance(3600)
        assert agent_of(h) == {"health": "quarantined", "crashes": 5, "restarts": 4}
        assert (await h.ctx.emit("job", "unheard")).matched == 1  # the harness's own recorder
        with pytest.raises(loom.LoomError) as gone:
            await h.ctx.tool("worker.handled")
        last = h.events("loom.error.handler_error")[-1]

        made.app.release("worker")
        await h.idle()
        assert agent_of(h) == {"health": "up", "crashes": 5, "restarts": 5}
        await h.ctx.emit("job", "heard again")
        await h.idle()
        assert await h.ctx.tool("worker.handled") == 1

    assert made.seen == ["heard again"]
    assert gone.value.code == "PROVIDER_UNAVAILABLE"
    assert "it is in quarantine after 5 crashes" in last.data["message"]
    assert "app.release('worker')" in last.data["hint"]


@pytest.mark.requirement("CRASH-QUARANTINE")
async def test_crashes_far_apart_lead_to_no_quarantine() -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        for _ in range(12):
            h.crash("worker")
            await h.ctx.emit("job")
            await h.advance(200)
        assert agent_of(h) == {"health": "up", "crashes": 12, "restarts": 12}


@pytest.mark.requirement("CRASH-QUARANTINE")
async def test_only_an_agent_that_is_in_quarantine_can_be_released() -> None:
    made = Crashes()
    with pytest.raises(loom.LoomError) as idle:
        made.app.release("worker")
    async with Harness(made.app):
        with pytest.raises(loom.LoomError) as up:
            made.app.release("worker")
        with pytest.raises(loom.LoomError) as unknown:
            made.app.release("wroker")

    assert idle.value.code == "NOT_SUPPORTED"
    assert (up.value.code, up.value.field) == ("CONFLICT", "agent")
    assert (unknown.value.code, unknown.value.field) == ("NOT_FOUND", "agent")
    assert unknown.value.hint == "did you mean 'worker'?"


@pytest.mark.requirement("CRASH-PLANTED")
async def test_the_harness_crashes_an_agent_where_it_is_told() -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        with pytest.raises(loom.LoomError) as unknown:
            h.crash("nobody")
        with pytest.raises(loom.LoomError) as wrong:
            h.crash("worker", at="a..b")
        h.crash("worker", at="spawn.*")
        await h.ctx.emit("job", "fine")
        await h.idle()
        assert agent_of(h)["crashes"] == 0
        await h.ctx.spawn("worker", "crashes")
        h.crash("worker", at="start")
        await h.advance(1)
        assert agent_of(h) == {"health": "up", "crashes": 2, "restarts": 1}
        assert agent_of(h, "other")["crashes"] == 0

    assert made.seen == ["fine"]
    assert made.life == ["start", "stop", "start", "stop"]
    assert unknown.value.code == "NOT_FOUND"
    assert (wrong.value.code, wrong.value.field) == ("INVALID_PARAMS", "at")


@pytest.mark.requirement("CRASH-RESTART")
async def test_a_stop_waits_for_a_restart_and_loses_nothing() -> None:
    made = Crashes()
    async with made.app.running() as ctx:
        await ctx.emit("job", "exit", key="a")
        await ctx.emit("job", 1, key="a")
        await ctx.emit("job", 2, key="b")

    assert sorted(made.seen) == [1, 2]
    assert made.life == ["start", "stop", "start", "stop"]


@pytest.mark.requirement("CRASH-RESTART", "CALL-INDETERMINATE")
@pytest.mark.parametrize("effect", ["pure", "unsafe"])
async def test_a_call_that_is_cut_off_by_a_restart_ends_as_its_effect_says(effect: Any) -> None:
    app = loom.App("cut")

    @app.agent("worker", topics=["job"])
    class Worker(loom.Agent):
        tries = 0

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

        @loom.capability("stay", effect=effect, timeout=600)
        async def stay(self) -> str:
            Worker.tries += 1
            if Worker.tries == 1:
                await asyncio.get_running_loop().create_future()
            return "second try"

    async with Harness(app) as h:
        called = asyncio.create_task(h.ctx.tool("stay"))
        await h.idle()
        h.crash("worker")
        await h.ctx.emit("job")
        await h.advance(30)
        result = (await asyncio.gather(called, return_exceptions=True))[0]

    if effect == "unsafe":
        assert isinstance(result, Indeterminate)
        assert Worker.tries == 1
    else:  # the broker may have tried it again
        assert isinstance(result, ProviderUnavailable) or result == "second try"


async def test_an_agent_that_hangs_in_its_second_start_holds_up_no_stop() -> None:
    app = loom.App("hangs")
    starts = 0

    @app.agent("worker", topics=["job"])
    class Worker(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            nonlocal starts
            starts += 1
            if starts == 2:
                await asyncio.get_running_loop().create_future()

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

    async with asyncio.timeout(10), Harness(app) as h:
        h.crash("worker")
        await h.ctx.emit("job")
        await h.advance(1)
        assert starts == 2
        assert agent_of(h)["health"] == "restarting"


@pytest.mark.requirement("BOUNDED", "CRASH-RESTART")
@pytest.mark.in_process("counts objects of one engine")
async def test_a_hundred_apps_that_crash_and_stop_leave_nothing() -> None:
    def threads() -> int:
        return threading.active_count()

    tasks, before = asyncio.all_tasks(), threads()
    for n in range(100):
        made = Crashes()
        made.fails_to_start = n % 2
        async with made.app.running() as ctx:
            await ctx.emit("job", ("exit", "error", 1)[n % 3])
            if n % 5 == 0:
                await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    assert threads() == before


@asynccontextmanager
async def opened(gate: asyncio.Event) -> AsyncGenerator[None]:
    """Let go what waits for the gate, also when the test fails."""
    try:
        yield
    finally:
        gate.set()


@pytest.mark.requirement("CANCEL-SHOWN")
async def test_a_turn_that_swallows_its_cancellation_is_counted_and_its_lane_goes_on() -> None:
    app = loom.App("stubborn")
    gate = asyncio.Event()
    seen: list[str] = []

    @app.agent("stubborn", topics=["job"])
    async def stubborn(ctx: loom.Context, event: loom.Event[str]) -> None:
        while event.data == "stay" and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        seen.append(event.data)

    async with Harness(app) as h, opened(gate):
        await h.ctx.emit("job", "stay", key="a")
        await h.idle()
        h.crash("stubborn")
        await h.ctx.emit("job", "crash", key="b")
        await h.ctx.emit("job", "next", key="a")
        await h.advance(3)
        assert seen == ["next"]
        assert h.stats()["runtime"]["tasks"] == {"abandoned": 1}
        with pytest.raises(AssertionError, match="though cancelled"):
            h.check()
        gate.set()
        await h.idle()
        assert h.stats()["runtime"]["tasks"] == {"abandoned": 0}

    assert seen == ["next", "stay"]


@pytest.mark.requirement("CANCEL-SHOWN")
async def test_a_call_that_swallows_its_cancellation_is_counted_and_its_caller_told() -> None:
    app = loom.App("stubborn")
    gate, started = asyncio.Event(), asyncio.Event()

    @app.capability("stay", effect="pure", timeout=60)
    async def stay() -> None:
        started.set()
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    async with Harness(app) as h, opened(gate):
        called = asyncio.create_task(h.ctx.tool("stay"))
        await started.wait()
        called.cancel()
        with pytest.raises(asyncio.CancelledError):
            await called
        await h.idle()
        assert h.stats()["runtime"]["tasks"] == {"abandoned": 1}
        assert h.stats()["calls"]["pending"] == 0
        with pytest.raises(AssertionError, match="though cancelled"):
            h.check()
        gate.set()
        await h.idle()
        assert h.stats()["runtime"]["tasks"] == {"abandoned": 0}


@pytest.mark.requirement("CRASH-FENCED")
async def test_what_an_object_set_going_before_its_crash_publishes_no_more() -> None:
    app = loom.App("zombies")
    heard: list[int] = []
    refused: list[loom.LoomError] = []
    made = 0

    @app.agent("ticker", topics=["go"])
    class Ticker(loom.Agent):
        async def on_start(self, ctx: loom.Context[Any]) -> None:
            nonlocal made
            made += 1
            self.task = asyncio.create_task(self.tick(ctx, made))

        async def on_event(self, ctx: loom.Context[Any], event: loom.Event[Any]) -> None: ...

        async def tick(self, ctx: loom.Context[Any], number: int) -> None:
            while True:
                await ctx.sleep(1)
                try:
                    await ctx.emit("tick", number)
                except loom.LoomError as error:
                    refused.append(error)
                    return

        async def on_stop(self, ctx: loom.Context[Any]) -> None:
            if made > 1:
                self.task.cancel()

    @app.agent("ear", topics=["tick"])
    async def ear(ctx: loom.Context, event: loom.Event[int]) -> None:
        heard.append(event.data)

    async with Harness(app) as h:
        await h.advance(2)
        h.crash("ticker")
        await h.ctx.emit("go")
        await h.advance(3)
    assert heard[:2] == [1, 1]
    assert set(heard[2:]) == {2}
    assert [error.code for error in refused] == ["FENCED"]


@pytest.mark.requirement("CRASH-QUARANTINE")
async def test_a_request_to_an_agent_in_quarantine_says_how_to_release_it() -> None:
    made = Crashes()
    async with Harness(made.app) as h:
        for _ in range(5):
            h.crash("worker")
            await h.ctx.emit("job", "x")
            await h.advance(60)
        with pytest.raises(loom.LoomError) as told:
            await h.ctx.request("job", "x")
    assert told.value.code == "UNAVAILABLE"
    assert "app.release" in str(told.value.hint)


async def stay(gate: asyncio.Event) -> None:
    """Go on until the gate opens, whoever cancels it."""
    while not gate.is_set():
        try:
            await gate.wait()
        except asyncio.CancelledError:
            continue


@pytest.mark.requirement("CALL-INDETERMINATE", "CANCEL-SHOWN")
async def test_an_unsafe_call_that_goes_on_after_its_agents_crash_is_indeterminate() -> None:
    app = loom.App("stubborn")
    gate, started = asyncio.Event(), asyncio.Event()
    paid: list[int] = []

    @app.agent("worker", topics=["job"])
    class Worker(loom.Agent):
        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

        @loom.capability("pay", effect="unsafe", timeout=600)
        async def pay(self) -> None:
            started.set()
            await stay(gate)
            paid.append(1)

    async with Harness(app) as h, opened(gate):
        called = asyncio.create_task(h.ctx.tool("pay"))
        await started.wait()
        h.crash("worker")
        await h.ctx.emit("job")
        await h.advance(3)
        with pytest.raises(Indeterminate, match="was cut off"):
            await called
        assert paid == []
        gate.set()
        await h.idle()
        assert paid == [1]


@pytest.mark.requirement("CRASH-RESTART")
async def test_a_turn_of_the_old_object_that_ends_late_crashes_no_new_one() -> None:
    app = loom.App("stubborn")
    gate = asyncio.Event()
    ended: list[str] = []

    @app.agent("stubborn", topics=["job"], concurrency=8)
    async def stubborn(ctx: loom.Context, event: loom.Event[str]) -> None:
        await stay(gate)
        ended.append(event.data)
        if event.data == "exit":
            raise SystemExit
        raise ValueError

    async with Harness(app) as h, opened(gate):
        for n in range(6):
            await h.ctx.emit("job", "error" if n else "exit", key=str(n))
        await h.idle()
        h.crash("stubborn")
        await h.ctx.emit("job", "crash", key="b")
        await h.advance(3)
        told = {"health": "up", "crashes": 1, "restarts": 1}
        assert agent_of(h, "stubborn") == told
        gate.set()
        await h.advance(1)
        assert len(ended) == 6
        assert agent_of(h, "stubborn") == told


@pytest.mark.requirement("STOP-GRACEFUL", "CANCEL-SHOWN")
async def test_an_on_stop_that_swallows_its_cancellation_holds_up_no_restart_and_no_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loom.runtime.supervision.STOP_SECONDS", 0.05)
    app = loom.App("stubborn")
    gate, again = asyncio.Event(), asyncio.Event()
    life: list[str] = []

    @app.agent("stubborn", topics=["job"])
    class Stubborn(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            life.append("start")
            if len(life) > 1:
                again.set()

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
            raise SystemExit

        async def on_stop(self, ctx: loom.Context) -> None:
            life.append("stop")
            await stay(gate)

    async with opened(gate), asyncio.timeout(10), app.running() as ctx:
        await ctx.emit("job")
        await again.wait()
        assert app.stats()["runtime"]["tasks"] == {"abandoned": 1}
        monkeypatch.setattr("loom.runtime.running.STOP_SECONDS", 0.05)
    assert life == ["start", "stop", "start", "stop"]
    assert caplog.text.count("on_stop of agent stubborn goes on though cancelled") == 2


@pytest.mark.requirement("STOP-GRACEFUL", "CANCEL-SHOWN")
async def test_a_second_on_start_that_swallows_its_cancellation_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loom.runtime.running.STOP_SECONDS", 0.05)
    app = loom.App("stubborn")
    gate, again = asyncio.Event(), asyncio.Event()
    starts = 0

    @app.agent("stubborn", topics=["job"])
    class Stubborn(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            nonlocal starts
            starts += 1
            if starts > 1:
                again.set()
                await stay(gate)

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
            raise SystemExit

    before = asyncio.all_tasks()
    async with opened(gate), asyncio.timeout(10), app.running() as ctx:
        await ctx.emit("job")
        await again.wait()
    assert "the restart of agent stubborn goes on though cancelled" in caplog.text
    left = asyncio.all_tasks() - before
    assert len(left) == 1
    assert await asyncio.gather(*left) == [None]  # it starts nothing on a link that is closed


class _Restarts:
    """An app whose agent crashes, keeps its Context, and hangs where it is told in a restart."""

    def __init__(self, where: str) -> None:
        self.app = loom.App("leaks")
        self.there = asyncio.Event()
        self.starts = 0
        outer = self

        async def hang(here: str) -> None:
            if here == where:
                outer.there.set()
                await asyncio.get_running_loop().create_future()

        @self.app.agent("worker", topics=["job"])
        class Worker(loom.Agent):
            async def on_start(self, ctx: loom.Context) -> None:
                self.ctx = ctx
                outer.starts += 1
                if outer.starts == 2:
                    await hang("on_start")

            async def on_event(self, ctx: loom.Context, event: loom.Event) -> None:
                raise SystemExit

            async def on_stop(self, ctx: loom.Context) -> None:
                await hang("on_stop")

    async def run(self) -> None:
        async with self.app.running() as ctx:
            await ctx.emit("job")
            await asyncio.get_running_loop().create_future()


@pytest.mark.requirement("BOUNDED")
@pytest.mark.parametrize("where", ["on_start", "on_stop"])
async def test_apps_stopped_in_the_middle_of_a_restart_keep_no_descriptor(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL, logger="loom.agent")  # caught records keep their stacks
    monkeypatch.undo()  # what checks the books of every test's engines keeps their links

    async def round_trip() -> None:
        made = _Restarts(where)
        running = asyncio.create_task(made.run())
        await made.there.wait()
        for _ in range(2):  # the second one skips the waiting
            running.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([running])

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    await round_trip()
    before = descriptors()
    for _ in range(30):
        await round_trip()
    assert descriptors() - before < 10  # the last few may still be ending
