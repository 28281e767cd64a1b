"""Sessions under faults of the network, of the node and of the client: what every run tries.

The same trials run larger in ``make prove-bridge``.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import loom
from tests.faults import trials
from tests.faults.proxy import Framing, Proxy, Weather

pytestmark = pytest.mark.timeout(180)


@asynccontextmanager
async def behind_proxy(folder: Path) -> AsyncGenerator[tuple[Proxy, dict[str, Any]]]:
    """A node behind a proxy, and how an app gets there."""
    async with Proxy() as proxy, trials.node_behind(proxy, folder / "data") as (_, served, token):
        there = {"url": f"loom://{proxy.address}", "token": token}
        yield proxy, there
        assert served.stats()["expired"] == 0


@pytest.mark.requirement("FAULT-CUTS")
@pytest.mark.parametrize(
    ("language", "framing", "seed"),
    [
        ("python", "http2", 1),
        ("python", "http2", 2),
        ("python", "websocket", 1),
        ("javascript", "websocket", 1),
        ("javascript", "websocket", 2),
    ],
)
async def test_what_is_cut_at_frames_or_inside_loses_repeats_and_reorders_nothing(
    language: trials.Language, framing: Framing, seed: int
) -> None:
    told = await trials.cuts(seed, 40, framing, language=language)
    assert told["resumed"] > 20  # a cut of a connection that had not begun resumes nothing


@pytest.mark.requirement("FAULT-KILLS")
@pytest.mark.parametrize(
    ("language", "seed", "wanted"), [("python", 1, 8), ("python", 2, 8), ("javascript", 1, 4)]
)
async def test_a_node_that_is_killed_has_all_it_acked_and_its_clients_come_back(
    language: trials.Language, seed: int, wanted: int
) -> None:
    assert (await trials.kills(seed, wanted, language=language))["kills"] == wanted


@pytest.mark.requirement("FAULT-CLEAN")
async def test_a_connection_that_the_server_ends_well_is_made_again(tmp_path: Path) -> None:
    ears = trials.Ears()
    async with behind_proxy(tmp_path) as (proxy, there), ears.app.running(**there) as ctx:
        for n in range(10):
            proxy.close()
            await ctx.emit("order.new", n, key="a", ack="os")
        await ears.until(lambda: ears.count == 10)
        assert proxy.accepted > 1
    assert ears.heard == {"a": list(range(10))}


@asynccontextmanager
async def link_lost_at_the_end(proxy: Proxy, there: dict[str, Any]) -> AsyncGenerator[loom.Context]:
    """A Context whose link has been lost; the app behind it stops when this is left."""
    app = loom.App("leaves")
    async with app.running(**there) as ctx:
        proxy.refuses = True
        async with ctx.watch("loom.link.lost") as changes:
            proxy.reset()
            await anext(changes)
        yield ctx


@pytest.mark.requirement("SESSION-FLUSH")
async def test_what_an_app_has_said_before_it_stops_goes_out_over_the_next_connection(
    tmp_path: Path,
) -> None:
    async with behind_proxy(tmp_path) as (proxy, there):
        own = {**there, "url": "loom://{}:{}".format(*proxy.target)}
        async with loom.connect(**own) as ctx, ctx.watch("tick") as ticks:
            async with link_lost_at_the_end(proxy, there) as lost:
                for n in range(20):
                    await lost.emit("tick", n, qos="realtime")
                asyncio.get_running_loop().call_later(0.2, proxy.heal)
            assert [(await anext(ticks)).data for _ in range(20)] == list(range(20))


@pytest.mark.requirement("SESSION-FLUSH")
async def test_an_app_that_stops_says_how_much_its_node_was_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loom.link.remote.STOP_SECONDS", 0.3)
    async with behind_proxy(tmp_path) as (proxy, there):
        async with link_lost_at_the_end(proxy, there) as lost:
            for n in range(20):
                await lost.emit("tick", n, qos="realtime")
        proxy.heal()
    told = [record.getMessage() for record in caplog.records if record.name == "loom.link"]
    assert any("has not confirmed the last 20 frames" in line for line in told)


@pytest.mark.requirement("FAULT-SLOW-READER")
async def test_one_that_does_not_read_holds_up_no_other_and_misses_nothing_durable(
    tmp_path: Path,
) -> None:
    slow, quick = trials.Ears(), trials.Ears()
    quick.app.name = "quick"
    async with (
        behind_proxy(tmp_path) as (proxy, there),
        Proxy(*proxy.target) as own,
        slow.app.running(**there),
    ):
        proxy.pause("down")
        async with loom.connect(f"loom://{own.address}", token=there["token"]) as ctx:
            heard: list[int] = []
            async with ctx.watch("order.>", qos="batched") as events:
                for n in range(300):
                    await ctx.emit("order.new", n, key="a", ack="os")
                    heard.append((await anext(events)).data)
            assert heard == list(range(300))
            assert slow.count < 300
        proxy.heal()
        await slow.until(lambda: slow.count == 300)
    assert slow.heard == {"a": list(range(300))}


@pytest.mark.requirement("FAULT-BEHIND-DATA")
async def test_an_answer_passes_the_data_that_its_caller_has_no_time_for(tmp_path: Path) -> None:
    app = loom.App("busy")
    gate = asyncio.Event()
    handled = 0

    @app.agent("busy", topics=["job"], concurrency=1)
    async def busy(ctx: loom.Context, event: loom.Event[int]) -> None:
        nonlocal handled
        if event.data == 0:  # all others wait behind it while it asks
            await gate.wait()
            assert (await ctx.request("ask", "x", timeout=10)).data == "x"
        handled += 1

    @app.agent("answers", topics=["ask"])
    async def answers(ctx: loom.Context, event: loom.Event[str]) -> str:
        return event.data

    async with (
        behind_proxy(tmp_path) as (proxy, there),
        app.running(**there),
        loom.connect(**there) as ctx,
    ):
        proxy.weather = Weather(latency=0.005)
        await asyncio.gather(*(ctx.emit("job", n, key="one", qos="background") for n in range(400)))
        gate.set()
        async with asyncio.timeout(20):
            while handled < 400:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert handled == 400


@pytest.mark.soak
@pytest.mark.requirement("FAULT-HALF-OPEN")
async def test_a_peer_that_is_half_open_is_found_out() -> None:
    assert (await trials.half_open(1, 3))["slowest_s"] <= 21


@pytest.mark.soak
@pytest.mark.requirement("FAULT-STORM")
async def test_a_thousand_clients_are_back_in_time() -> None:
    assert (await trials.storm(1, 1_000))["slowest_s"] <= 15


@pytest.mark.soak
@pytest.mark.requirement("FAULT-BLOCKED-LOOP")
async def test_a_client_whose_loop_stands_still_keeps_its_session() -> None:
    assert (await trials.blocked(1, 1))["sessions_kept"] == 1
