"""Peers that keep to no protocol, at a real node: each is told or ended, and no other notices."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

import loom
from loom.limits import HANDSHAKE_MS
from tests.faults import hostile
from tests.faults.trials import Up

pytestmark = pytest.mark.timeout(120)

KNOWN = pytest.mark.parametrize("known", [True, False], ids=["known", "stranger"])
BUFFERS = 6 << 20
"""What the sockets between two processes may hold, which the node has not read."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Generator[Up]:
    """A node in a process of its own."""
    running = Up(tmp_path_factory.mktemp("node"))
    asyncio.run(running.start())
    yield running
    running.kill()


def where(up: Up) -> hostile.Where:
    """Where it listens."""
    there = urlsplit(up.url)
    assert there.hostname is not None
    assert there.port is not None
    return there.hostname, there.port


@asynccontextmanager
async def bystander(up: Up) -> AsyncGenerator[loom.Context]:
    """A session that hears what it says, before and after, over the same connection."""
    app = loom.App("bystander")
    async with (
        app.running(url=up.url, token=up.token) as ctx,
        ctx.watch("good.>", qos="batched") as events,
    ):
        changes = app.stats()["link"]["changes"]
        for n in range(2):
            await ctx.emit("good.one", n, ack="os")
            assert (await anext(events)).data == n
            if n == 0:
                yield ctx
        assert app.stats()["link"]["changes"] == changes


@pytest.mark.requirement("BRIDGE-FLOODS")
@KNOWN
@pytest.mark.parametrize("what", hostile.FLOODS)
async def test_a_flood_ends_the_connection_that_it_comes_over(
    up: Up, what: str, known: bool
) -> None:
    async with bystander(up):
        ended = await hostile.FLOODS[what](where(up), up.token if known else None)
    assert ended.sent < hostile.ENOUGH
    assert known or ended.sent < BUFFERS


@pytest.mark.requirement("BRIDGE-MISFITS")
@KNOWN
@pytest.mark.parametrize("what", hostile.MISFITS)
async def test_what_is_too_large_or_too_deep_is_refused_with_the_reason(
    up: Up, what: str, known: bool
) -> None:
    misfit = hostile.MISFITS[what]
    async with bystander(up):
        ended = await misfit.attack(where(up), up.token if known else None)
    assert ended.status == misfit.status
    assert misfit.reason in ended.reason


@pytest.mark.requirement("BRIDGE-SLOW")
async def test_who_says_who_he_is_a_byte_at_a_time_is_ended_after_five_seconds(up: Up) -> None:
    async with bystander(up):
        took = await asyncio.gather(*(hostile.slowly(where(up), what) for what in hostile.SLOW))
    handshake = HANDSHAKE_MS / 1_000
    late = {
        what: seconds
        for what, seconds in zip(hostile.SLOW, took, strict=True)
        if not handshake * 0.9 <= seconds <= handshake * 2
    }
    assert not late


@pytest.mark.requirement("BRIDGE-DEEP-DATA")
async def test_data_that_is_nested_too_deep_harms_nobody_who_gets_it(up: Up) -> None:
    deep = b"[" * 25_000 + b"]" * 25_000
    async with (
        bystander(up) as ctx,
        ctx.watch("deep.>", qos="batched") as events,
        hostile.http2(where(up), up.token) as peer,
    ):
        for first, data in ((1, deep), (2, b"1")):
            payload = hostile.field(5, hostile.field(1, data))
            published = hostile.field(1, first) + hostile.field(4, b"deep.one") + payload
            await peer.message(hostile.packet(first, hostile.field(14, published)))
        # What nobody can read is bytes, as all is that is not JSON; what is behind it comes.
        assert [(await anext(events)).data for _ in range(2)] == [deep, 1]


@pytest.mark.requirement("BRIDGE-INFO")
@pytest.mark.parametrize("shown", [b"[" * 30_000 + b"]" * 30_000, b"[1]", b"{", b"", b'"x"'])
async def test_what_a_session_says_of_itself_is_refused_if_others_cannot_read_it(
    up: Up, shown: bytes
) -> None:
    async with bystander(up) as ctx, hostile.http2(where(up), up.token) as peer:
        about = hostile.field(1, 7) + hostile.field(2, b"odd") + hostile.field(3, b"no.>")
        about += hostile.field(5, 1) + hostile.field(6, shown)
        peer.heard.clear()
        await peer.message(hostile.packet(1, hostile.field(8, about)))
        async with asyncio.timeout(hostile.SOON):
            while b"it is no JSON object" not in peer.heard:
                await peer.more()
        assert "odd" not in {agent.name for agent in await ctx.agents()}


@pytest.mark.requirement("BRIDGE-INFO")
async def test_an_entry_that_is_none_is_left_out_of_the_directory(
    up: Up, caplog: pytest.LogCaptureFixture
) -> None:
    app = loom.App("good")

    @app.agent("whole", topics=["no.>"])
    async def whole(ctx: loom.Context, event: loom.Event) -> None: ...

    async with (
        bystander(up) as ctx,
        ctx.watch("behind.>", qos="batched") as events,
        app.running(url=up.url, token=up.token),
        hostile.http2(where(up), up.token) as peer,
    ):
        newer = b'{"name":"new","filters":[],"group":"","concurrency":1,"charm":[7]}'
        for number, shown in ((1, b'{"name":7}'), (2, newer)):
            about = hostile.field(1, number) + hostile.field(2, b"odd%d" % number)
            about += hostile.field(3, b"no.>") + hostile.field(5, 1) + hostile.field(6, shown)
            await peer.message(hostile.packet(number, hostile.field(8, about)))
        behind = hostile.field(4, b"behind.it") + hostile.field(5, hostile.field(1, b"1"))
        await peer.message(hostile.packet(3, hostile.field(14, hostile.field(1, 3) + behind)))
        await anext(events)
        found = await ctx.agents()
    # one that says wrong things of itself is named by what it was registered as
    assert {"odd1", "odd2", "whole"} <= {agent.name for agent in found}
