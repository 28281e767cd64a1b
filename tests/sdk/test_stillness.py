"""What the Harness says of a test that waits for a clock it does not move."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

import loom
from loom.testing import Harness
from loom.testing.stillness import Stillness

pytestmark = pytest.mark.requirement("HARNESS-STILL")

SOON = 0.006  # real seconds of patience


class Heard(logging.Handler):
    """Keeps what is logged, and says that something was."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.some = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.some.set()


@pytest.fixture
async def heard() -> AsyncGenerator[Heard]:
    logger, handler = logging.getLogger("loom.testing"), Heard()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


class Looks:
    """Counts the looks of a Stillness, and lets a test wait for so many more."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    def seen(self) -> None:
        self.count += 1
        if self.count >= self._wanted:
            self._reached.set()

    async def more(self, count: int) -> None:
        self._wanted = self.count + count
        self._reached.clear()
        await self._reached.wait()


def slow() -> loom.App:
    app = loom.App("slow")

    @app.agent("oracle", topics=["ask"])
    async def oracle(ctx: loom.Context, event: loom.Event) -> str:
        await ctx.sleep(60)
        return "yes"

    return app


async def test_a_test_that_awaits_what_only_time_brings_is_told_once(heard: Heard) -> None:
    async with Harness(slow(), _still_seconds=SOON) as h:
        asked = asyncio.create_task(h.ctx.request("ask", timeout=3600))
        await heard.some.wait()
        await h.advance(60)
        assert (await asked).data == "yes"

    (line,) = heard.lines
    assert "the next deadline is in 60 s of the virtual clock; await h.advance(…)" in line


async def test_a_deadline_of_the_engine_counts_as_well_as_a_sleeper(heard: Heard) -> None:
    app = loom.App("never")
    let_go = asyncio.Event()

    @app.agent("never", topics=["ask"])
    async def never(ctx: loom.Context, event: loom.Event) -> None:
        await let_go.wait()

    async with Harness(app, _still_seconds=SOON) as h:
        asked = asyncio.create_task(h.ctx.request("ask", timeout=7))
        await heard.some.wait()
        await h.advance(7)
        with pytest.raises(TimeoutError):
            await asked
        let_go.set()

    assert "is in 7 s" in heard.lines[0]


async def test_a_start_that_waits_for_the_clock_is_told_too(heard: Heard) -> None:
    app = loom.App("starts")

    @app.agent("sleeper", topics=["never"])
    class Sleeper(loom.Agent):
        async def on_start(self, ctx: loom.Context) -> None:
            await ctx.sleep(5)

        async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...

    async def test() -> None:
        async with Harness(app, _still_seconds=SOON):
            pass

    entered = asyncio.create_task(test())
    await heard.some.wait()
    entered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entered
    assert "is in 5 s" in heard.lines[0]


def steps() -> Callable[[], int]:
    numbers = iter(range(1_000_000))
    return lambda: next(numbers)


@pytest.mark.parametrize(
    ("is_calm", "progress", "due_in"),
    [
        (lambda: False, lambda: 0, lambda: 1.0),
        (lambda: True, steps(), lambda: 1.0),
        (lambda: True, lambda: 0, lambda: None),
    ],
    ids=["something runs", "something has gone on", "nothing is to come"],
)
async def test_it_is_silent_while(
    heard: Heard,
    is_calm: Callable[[], bool],
    progress: Callable[[], object],
    due_in: Callable[[], float | None],
) -> None:
    looks = Looks()

    def look() -> object:
        looks.seen()
        return progress()

    stillness = Stillness(SOON, is_calm=is_calm, progress=look, due_in=due_in)
    await looks.more(12)
    stillness.stop()
    assert heard.lines == []


@pytest.mark.parametrize("way", ["left", "failed", "never started"])
async def test_it_ends_with_the_harness_and_real_time_has_none(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    made: list[str] = []

    class Recorded(Stillness):
        def __init__(self, patience: float, **of: Any) -> None:
            super().__init__(patience, **of)
            made.append("made")

        def stop(self) -> None:
            super().stop()
            made.append("stopped")

    monkeypatch.setattr("loom.testing.harness.Stillness", Recorded)
    app = slow()
    if way == "never started":
        app.agent("broken", topics=["ask"])(Unmakeable)
    with contextlib.suppress(ZeroDivisionError):
        async with Harness(app):
            if way == "failed":
                raise ZeroDivisionError
    assert (made[0], set(made[1:])) == ("made", {"stopped"})

    made.clear()
    async with Harness(slow(), clock="system"):
        pass
    assert made == []


class Unmakeable(loom.Agent):
    """An agent whose making keeps its app from starting."""

    def __init__(self) -> None:
        raise ZeroDivisionError

    async def on_event(self, ctx: loom.Context, event: loom.Event) -> None: ...


async def test_it_looks_no_more_when_it_was_stopped() -> None:
    looks = Looks()

    def look() -> bool:
        looks.seen()
        return False

    stillness = Stillness(SOON, is_calm=look, progress=lambda: 0, due_in=lambda: 1.0)
    await looks.more(2)
    stillness.stop()
    count = looks.count
    other = Looks()  # of a second one, which goes on

    def look_on() -> bool:
        other.seen()
        return False

    second = Stillness(SOON, is_calm=look_on, progress=lambda: 0, due_in=lambda: 1.0)
    await other.more(4)
    second.stop()
    assert looks.count == count
