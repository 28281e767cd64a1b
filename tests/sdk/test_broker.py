"""What the broker does for callers when providers fail: seen through the public API.

Time is virtual: between two attempts it stands still until the test moves it.
"""

import asyncio
from typing import Any

import pytest

import loom
from loom.limits import BREAKER_FAILURES, CALL_ATTEMPTS
from loom.testing import Harness


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures: int, error: loom.LoomError | None = None) -> None:
        self.failures = failures
        self.error = error or loom.errors.ProviderUnavailable("not now")
        self.runs = 0
        self.effects: set[str | None] = set()

    def run(self, effect_id: str | None = None) -> int:
        """Count one attempt."""
        self.runs += 1
        self.effects.add(effect_id)
        if self.runs <= self.failures:
            raise self.error
        return self.runs


async def _outcome(h: Harness, call: Any) -> Any:
    """Let a call go on until it ends, whatever pauses it takes; return what it raised or gave."""
    task = asyncio.ensure_future(call)
    await h.idle()
    while not task.done():
        await h.advance(0.2)
    error = task.exception()
    return task.result() if error is None else error


@pytest.mark.requirement("CALL-RETRY")
async def test_a_pure_capability_that_fails_twice_answers_the_third_time() -> None:
    app = loom.App("retries")
    flaky = Flaky(CALL_ATTEMPTS - 1)

    @app.capability("look", effect="pure", timeout=30)
    async def look() -> int:
        return flaky.run()

    async with Harness(app) as h:
        assert await _outcome(h, h.ctx.tool(look.bind())) == CALL_ATTEMPTS
        stats = h.stats()

    assert stats["calls"]["retried"] == CALL_ATTEMPTS - 1
    (row,) = stats["capabilities"]
    assert (row["calls"], row["ok"]) == (1, 1)
    assert row["providers"][0]["retries"] == CALL_ATTEMPTS - 1


@pytest.mark.requirement("CALL-RETRY")
async def test_a_call_that_fails_three_times_raises_the_last_error() -> None:
    app = loom.App("retries")
    flaky = Flaky(CALL_ATTEMPTS, loom.errors.ToolError("the disk is full", retry=True))

    @app.capability("put", effect="idempotent", timeout=30)
    async def put(effect_id: str | None = None) -> int:
        return flaky.run(effect_id)

    async with Harness(app) as h:
        error = await _outcome(h, h.ctx.tool(put.bind()))

    assert (error.code, error.message, error.retry) == ("TOOL_ERROR", "the disk is full", True)
    assert (flaky.runs, len(flaky.effects)) == (CALL_ATTEMPTS, 1)


@pytest.mark.requirement("CALL-RETRY")
@pytest.mark.parametrize(
    ("effect", "key", "error", "runs"),
    [
        ("unsafe", None, loom.errors.ProviderUnavailable("not now"), 1),
        ("probeable", None, loom.errors.ProviderUnavailable("not now"), 1),
        ("unsafe", "k", loom.errors.ProviderUnavailable("not now"), 2),
        ("pure", None, loom.errors.InvalidParams("no"), 1),
        ("pure", None, loom.errors.InvalidParams("no", retry=True), 1),
        ("pure", None, loom.errors.ProviderUnavailable("never", retry=False), 1),
        ("pure", None, ValueError(), 1),
    ],
)
async def test_only_what_does_no_harm_twice_is_tried_again(
    effect: Any, key: str | None, error: Exception, runs: int
) -> None:
    app = loom.App("retries")
    tried: list[Exception] = []

    @app.capability("work", effect=effect, timeout=30)
    async def work() -> str:
        tried.append(error)
        if len(tried) < 2:
            raise error
        return "done"

    async with Harness(app) as h:
        outcome = await _outcome(h, h.ctx.tool("work", key=key))

    assert len(tried) == runs
    assert (outcome == "done") == (runs == 2)


@pytest.mark.requirement("CALL-BREAKER")
@pytest.mark.requirement("RETRY-AFTER")
async def test_a_breaker_opens_says_when_to_come_back_and_recovers_by_itself() -> None:
    app = loom.App("breaker")
    flaky = Flaky(BREAKER_FAILURES, loom.errors.ToolError("it is broken"))

    @app.capability("work", effect="unsafe", timeout=30)
    async def work() -> int:
        return flaky.run()

    async with Harness(app) as h:
        for _ in range(BREAKER_FAILURES):
            with pytest.raises(loom.errors.ToolError):
                await h.ctx.tool("work")
        with pytest.raises(loom.errors.ProviderUnavailable) as refused:
            await h.ctx.tool("work")
        (ejected,) = await h.ctx.capabilities("work")
        assert refused.value.retry_after is not None
        await h.advance(refused.value.retry_after)
        assert await h.ctx.tool("work") == BREAKER_FAILURES + 1
        (well,) = await h.ctx.capabilities("work")
        await h.idle()

        changes = [e.data["health"] for e in h.events("loom.directory.capability.changed")]

    assert refused.value.retry_after == 1.0
    assert (ejected.health, well.health) == ("ejected", "up")
    assert changes == ["ejected", "probing", "up"]


@pytest.mark.requirement("CALL-JOIN")
@pytest.mark.in_process("a stream is refused when it is opened, and elsewhere when it is read")
async def test_calls_with_one_key_run_once_and_each_gets_the_result() -> None:
    app = loom.App("joins")
    gate = asyncio.Event()
    runs: list[str] = []

    @app.capability("report", effect="unsafe", timeout=30)
    async def report(month: str) -> str:
        runs.append(month)
        await gate.wait()
        return month

    async with Harness(app) as h:
        may = [asyncio.ensure_future(h.ctx.tool(report.bind("May"), key="k")) for _ in range(3)]
        await h.idle()
        with pytest.raises(loom.errors.Conflict) as other:
            await h.ctx.tool(report.bind("June"), key="k")
        with pytest.raises(loom.errors.Conflict):
            await h.ctx.stream("report", args={"month": "May"}, key="k").__aenter__()
        may[0].cancel()
        await h.idle()
        gate.set()
        results = await asyncio.gather(*may, return_exceptions=True)
        joined = h.stats()["calls"]["joined"]

    assert runs == ["May"]
    assert results[1:] == ["May", "May"]
    assert isinstance(results[0], asyncio.CancelledError)
    assert (other.value.field, joined) == ("key", 2)


@pytest.mark.requirement("CALL-JOIN")
async def test_work_whose_callers_have_all_gone_is_cancelled() -> None:
    app = loom.App("joins")
    ended: list[str] = []

    @app.capability("wait", effect="unsafe", timeout=30)
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async with Harness(app) as h:
        calls = [asyncio.ensure_future(h.ctx.tool(wait.bind(), key="k")) for _ in range(2)]
        await h.idle()
        calls[0].cancel()
        await h.idle()
        assert ended == []
        calls[1].cancel()
        await h.idle()
        assert ended == ["cancelled"]
        gauges = h.stats()["gauges"]

    assert (gauges["jobs"], gauges["keys"], gauges["pausing"]) == (0, 0, 0)


@pytest.mark.requirement("CALL-BULKHEAD")
async def test_a_capability_that_hangs_holds_up_no_other() -> None:
    app = loom.App("hung")

    @app.capability("hang", effect="pure", timeout=5)
    async def hang() -> None:
        await asyncio.Event().wait()

    @app.capability("answer", effect="pure", timeout=5)
    async def answer() -> int:
        return 42

    async with Harness(app) as h:
        hung = [asyncio.ensure_future(h.ctx.tool(hang.bind())) for _ in range(100)]
        await h.idle()
        for _ in range(10):
            assert await h.ctx.tool(answer.bind()) == 42
        await h.advance(5)
        outcomes = await asyncio.gather(*hung, return_exceptions=True)
        rows = {row["name"]: row["providers"][0] for row in h.stats()["capabilities"]}

    assert all(isinstance(error, loom.LoomError) for error in outcomes)
    assert rows["hang"]["window"] < rows["answer"]["window"]
