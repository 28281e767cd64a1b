"""A loop that stands still is reported from a thread of its own; the others go on."""

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

import loom
from loom.config import Config
from loom.link import open_local
from loom.runtime.running import Running, running

_CONFIG = Config(target="", model="auto", environment={}, origins={})


def blocking_app(name: str) -> loom.App:
    app = loom.App(name)

    @app.agent("blocks", topics=["block"])
    async def blocks(ctx: loom.Context, event: loom.Event[float]) -> None:
        secret = "hunter2"
        time.sleep(event.data)  # noqa: ASYNC251  it is what is found
        assert secret

    @app.agent("echo", topics=["echo"])
    async def echo(ctx: loom.Context, event: loom.Event[Any]) -> Any:
        return event.data

    return app


async def told(run: Running, *, upto: int, block: float) -> list[loom.Event[Any]]:
    """Block the loop once and return the first events on loom.error."""
    found: list[loom.Event[Any]] = []
    async with run.context.watch("loom.error.>") as errors:
        await run.context.emit("block", block)
        async for error in errors:
            found.append(error)
            if len(found) == upto:
                break
    return found


@pytest.mark.requirement("LOOP-STALL")
async def test_a_loop_that_stands_still_is_reported_once_with_its_places_at_a_lowered_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        asyncio.timeout(15),
        running(blocking_app("stall"), config=_CONFIG, loop_stall=0.2) as run,
    ):
        stalled, goes_on = await told(run, upto=2, block=1.0)
        assert (await run.context.request("echo", 1)).data == 1
        assert run.stats()["runtime"]["loop"] == {"stalls": 1}

    assert stalled.topic == goes_on.topic == "loom.error.exhausted"
    message: str = stalled.data["message"]
    assert "the event loop of stall has stood still for 0.2 s at test_watchdog.py:" in message
    assert " blocks, pool.py:" in message
    assert "/" not in message
    assert "hunter2" not in message
    assert stalled.data["limit"] == "loop_stall_seconds"
    assert "goes on; it stood still for 1." in goes_on.data["message"]
    logged = [r for r in caplog.records if "stood still" in r.message]
    assert [r.levelno for r in logged] == [logging.ERROR] * 2
    assert "time.sleep(event.data)" in logged[0].message


@pytest.mark.requirement("LOOP-STALL")
async def test_a_loop_that_goes_on_is_not_reported() -> None:
    async with running(blocking_app("fine"), config=_CONFIG, loop_stall=0.2) as run:
        for _ in range(20):
            await asyncio.sleep(0.02)
        assert run.stats()["runtime"]["loop"] == {"stalls": 0}


@pytest.mark.requirement("LOOP-STALL")
async def test_a_loop_in_another_thread_goes_on_while_the_first_is_blocked() -> None:
    engine = open_local()
    blocked, ready = threading.Event(), threading.Event()
    rounds = 0

    async def other() -> None:
        nonlocal rounds
        link = engine.attach("default", "other")
        heard = asyncio.Event()
        handle = link.session.subscribe(["beat"], 1)
        link.on_ready(handle, heard.set)
        done = None
        try:
            ready.set()
            while not blocked.is_set() or rounds < 100:
                link.session.emit(link.session.root, None, "beat", b"1", 1)
                while (done := link.session.take(handle, done)) is None:
                    heard.clear()
                    link.look()
                    await heard.wait()
                if blocked.is_set():
                    rounds += 1
            link.session.take(handle, done)
        finally:
            link.close()

    async def first() -> None:
        link = engine.attach("default", "first")
        try:
            blocked.set()
            thread.join(20)  # this loop stands still until the other one has gone on
        finally:
            link.close()

    thread = threading.Thread(target=lambda: asyncio.run(other()))
    thread.start()
    ready.wait(20)
    await first()
    assert rounds == 100


async def test_the_thread_of_the_watchdog_ends_with_its_app() -> None:
    before = threading.active_count()
    for _ in range(20):
        async with blocking_app("short").running():
            assert threading.active_count() == before + 1
    assert threading.active_count() == before
