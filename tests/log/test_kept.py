"""What outlives the process besides events: states of agents and values of the memory."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import loom
from loom.errors import Exhausted, InvalidParams, LoomError
from loom.testing import Harness


class Basket(BaseModel):
    items: list[str] = []


class Priced(BaseModel):
    items: list[str] = []
    price: int


class Labelled(BaseModel):
    items: list[str] = []
    label: str = "none"


def baskets(state: Any) -> tuple[loom.App, list[Any]]:
    app, seen = loom.App("shop"), list[Any]()

    @app.agent("baskets", topics=["add"])
    class Baskets(loom.Agent[state]):
        async def on_event(self, ctx: loom.Context[Any], event: loom.Event[str]) -> None:
            ctx.state.items.append(event.data)
            seen.append(ctx.state.model_dump())
            if event.data == "stone":
                raise LoomError("too heavy")

    del Baskets
    return app, seen


@pytest.mark.requirement("SDKLOG-STATE")
async def test_states_are_there_after_a_restart_for_each_key(tmp_path: Path) -> None:
    app, seen = baskets(Basket)
    async with Harness(app, data=tmp_path) as h:
        for key, item in (("ada", "tea"), ("bob", "cups"), ("ada", "stone")):
            await h.ctx.emit("add", item, key=key)
    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("add", "milk", key="ada")
        await h.ctx.emit("add", "milk", key="bob")
        await h.idle()
    assert [one["items"] for one in seen[-2:]] == [["tea", "stone", "milk"], ["cups", "milk"]]


@pytest.mark.requirement("SDKLOG-STATE", "CRASH-RESTART")
async def test_the_object_after_a_crash_goes_on_with_the_states_and_keeps_them(
    tmp_path: Path,
) -> None:
    app, seen = baskets(Basket)
    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("add", "tea", key="ada")
        await h.idle()
        h.crash("baskets", at="add")
        await h.ctx.emit("add", "lost", key="bob")
        await h.advance(1)
        await h.ctx.emit("add", "milk", key="ada")
        await h.idle()
        assert not h.events("loom.error.fenced")
    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("add", "cups", key="ada")
        await h.idle()
    assert seen[-1]["items"] == ["tea", "milk", "cups"]


@pytest.mark.requirement("SDKLOG-STATE")
async def test_a_turn_that_changes_no_state_writes_none(tmp_path: Path) -> None:
    app = loom.App("shop")

    @app.agent("baskets", topics=["look"])
    class Baskets(loom.Agent[Basket]):
        async def on_event(self, ctx: loom.Context[Basket], event: loom.Event[Any]) -> None:
            if event.data == 0:
                ctx.state.items.append("tea")

    del Baskets
    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("look", 0, key="ada")
        await h.idle()
        before = [entry["end"] for entry in h.stats()["log"]["partitions"]]
        for _ in range(9):
            await h.ctx.emit("look", 1, key="ada")
        await h.idle()
        assert [entry["end"] for entry in h.stats()["log"]["partitions"]] == before


@pytest.mark.requirement("SDKLOG-STATE")
async def test_a_state_that_still_fits_is_taken_over_and_one_that_does_not_names_its_agent(
    tmp_path: Path,
) -> None:
    async with Harness(baskets(Basket)[0], data=tmp_path) as h:
        await h.ctx.emit("add", "tea", key="ada")
    app, seen = baskets(Labelled)
    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("add", "milk", key="ada")
        await h.idle()
    assert seen == [{"items": ["tea", "milk"], "label": "none"}]
    with pytest.raises(InvalidParams) as refused:
        async with Harness(baskets(Priced)[0], data=tmp_path):
            raise AssertionError
    assert (refused.value.field, refused.value.who) == ("state", "baskets")
    assert "'ada'" in refused.value.message
    assert "default" in str(refused.value.hint)


@pytest.mark.requirement("SDKLOG-STATE")
async def test_a_state_that_has_no_json_form_is_refused_at_the_start_where_there_is_a_log(
    tmp_path: Path,
) -> None:
    class Opaque:
        pass

    app = loom.App("shop")

    @app.agent("baskets", topics=["add"])
    class Baskets(loom.Agent[Opaque]):
        async def on_event(self, ctx: loom.Context[Opaque], event: loom.Event[Any]) -> None:
            ctx.state.x = 1  # pyright: ignore[reportAttributeAccessIssue]

    del Baskets
    with pytest.raises(InvalidParams) as refused:
        async with Harness(app, data=tmp_path):
            raise AssertionError
    assert (refused.value.field, refused.value.who) == ("state", "baskets")
    async with Harness(app) as h:
        await h.ctx.emit("add", 1)


@pytest.mark.requirement("SDKLOG-MEMORY")
async def test_values_of_the_memory_are_there_after_a_restart_until_their_time(
    tmp_path: Path,
) -> None:
    app = loom.App("shop")

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.memory.put("kept", {"a": 1})
        await h.ctx.memory.put("changed", 1)
        await h.ctx.memory.put("changed", 2)
        await h.ctx.memory.put("gone", 1)
        await h.ctx.memory.delete("gone")
        await h.ctx.memory.put("short", 1, ttl=60)
        await h.ctx.memory.put("long", 1, ttl=600)
        await h.advance(100)
        # something is written then, so that the clock of the log has passed the end of "short"
        await h.ctx.emit("tick", 1, ack="disk")
    async with Harness(app, data=tmp_path) as h:
        found = {key: value async for key, value in h.ctx.memory.scan()}
        assert found == {"kept": {"a": 1}, "changed": 2, "long": 1}
        await h.advance(700)
        assert await h.ctx.memory.get("long") is None


@pytest.mark.requirement("SDKLOG-MEMORY")
async def test_without_a_directory_nothing_of_it_is_kept() -> None:
    app, seen = baskets(Basket)
    for _ in range(2):
        async with Harness(app) as h:
            assert await h.ctx.memory.get("x") is None
            await h.ctx.memory.put("x", 1)
            await h.ctx.emit("add", "tea", key="ada")
            await h.idle()
    assert [one["items"] for one in seen] == [["tea"], ["tea"]]


@pytest.mark.requirement("STATE-FENCED")
async def test_a_durable_turn_that_fails_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    app, seen = loom.App("shop"), list[Any]()

    @app.agent("baskets", topics=["add"])
    class Baskets(loom.Agent[Basket]):
        async def on_event(self, ctx: loom.Context[Basket], event: loom.Event[str]) -> None:
            ctx.state.items.append(event.data)
            seen.append(list(ctx.state.items))
            if event.attempt == 1:
                raise LoomError("once")

    del Baskets
    async with Harness(app, data=tmp_path) as h:
        for item in ("tea", "cups"):
            await h.ctx.emit("add", item, key="ada", ack="disk")
            await h.idle()
            await h.advance(2)
            await h.idle()
    assert seen == [["tea"], ["tea"], ["tea", "cups"], ["tea", "cups"]]


@pytest.mark.requirement("STATE-ACK")
async def test_what_the_log_can_never_take_is_refused_and_leaves_what_was_there(
    tmp_path: Path,
) -> None:
    app, seen, big = loom.App("shop"), list[Any](), "x" * (64 << 20)

    @app.agent("baskets", topics=["add"])
    class Baskets(loom.Agent[Basket]):
        async def on_event(self, ctx: loom.Context[Basket], event: loom.Event[str]) -> None:
            seen.append(list(ctx.state.items))
            ctx.state.items.append(big if event.data == "big" else event.data)

    del Baskets
    async with Harness(app, data=tmp_path) as h:
        for item in ("tea", "big", "cups"):
            await h.ctx.emit("add", item, key="ada", ack="disk")
            await h.idle()
        with pytest.raises(Exhausted) as refused:
            await h.ctx.memory.put("m", big)
        assert (refused.value.field, refused.value.limit) == ("value", "memory_bytes")
        dead = h.events("loom.dead.>")
        assert len(dead) == 1
    assert seen == [[], ["tea"], ["tea"]]
