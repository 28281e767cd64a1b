"""States and the memory at a node, where several processes have them: each finds the newest."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

import loom
from loom.config import BridgeConfig, load
from loom.errors import InvalidParams
from loom.node.node import Plan, hosting

EVENTS = 40
KEYS = 4


class Counter(loom.Agent[dict[str, int]]):
    """Counts the events of a key, in its state."""

    async def on_event(self, ctx: loom.Context[dict[str, int]], event: loom.Event[object]) -> int:
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        return ctx.state["n"]


def app(name: str) -> loom.App:
    made = loom.App(name)
    made.agent("counter", topics=["count.>"])(Counter)
    return made


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[loom.Context]:
    """A client of a node on which this process has everything at hand."""
    monkeypatch.setenv("LOOM_HOME", str(tmp_path))
    monkeypatch.setenv("LOOM_LOG__DURABLE", "count.kept")
    bridge = BridgeConfig(bind=("127.0.0.1:0",))
    async with (
        hosting(Plan(config=load(), data=tmp_path / "data", bridge=bridge)),
        loom.connect() as ctx,
    ):
        yield ctx


@pytest.mark.requirement("SHARED-STATE")
@pytest.mark.parametrize("topic", ["count.once", "count.kept"])
async def test_a_key_finds_its_state_in_whichever_process_has_it(
    topic: str, node: loom.Context
) -> None:
    async def ask(key: str) -> list[object]:
        """Count one after the other: the lane may be in another process each time."""
        return [(await node.request(topic, key=key, wait=True)).data for _ in range(EVENTS)]

    async with app("one").running(url="local"):
        async with app("two").running(url="local"):
            keys = [f"k{number}" for number in range(KEYS)]
            found = await asyncio.gather(*(ask(key) for key in keys))
            assert found == [list(range(1, EVENTS + 1))] * KEYS
        assert (await node.request(topic, key="k0", wait=True)).data == EVENTS + 1


@pytest.mark.requirement("SHARED-STATE")
async def test_what_one_process_puts_into_the_memory_another_reads(node: loom.Context) -> None:
    async with loom.connect(name="other") as other:
        await node.memory.put("a/1", [1])
        assert await other.memory.get("a/1") == [1]
        for number in range(EVENTS):
            await node.memory.put("a/1", number)
            assert await node.memory.get("a/1") == number  # its own, at once
        assert await other.memory.get("a/1") == EVENTS - 1
        await other.memory.put("a/2", "two", ttl=60)
        assert [item async for item in node.memory.scan("a/")] == [("a/1", 39), ("a/2", "two")]
        assert await other.memory.delete("a/1") is True
        assert await node.memory.get("a/1") is None
        assert await node.memory.delete("a/1") is False
        assert [item async for item in node.memory.scan()] == [("a/2", "two")]


@pytest.mark.requirement("MEMORY-READABLE")
async def test_what_may_be_put_at_all_may_be_put_at_a_node(node: loom.Context) -> None:
    deep: object = []
    for _ in range(126):
        deep = {"a": deep}
    values = {"é" * 128: deep, "big": 2**64 - 1, "text": "\x00é😀", "float": 1.7e308, "0": -(2**63)}
    async with loom.connect(name="other") as other:
        for key, value in values.items():
            await node.memory.put(key, value)
        assert {key: value async for key, value in other.memory.scan()} == values
        for key, value in (("", 1), ("a\n", 1), ("k" * 257, 1), ("deep", [deep])):
            with pytest.raises(InvalidParams):
                await node.memory.put(key, value)
        assert {key async for key, _ in other.memory.scan()} == set(values)
