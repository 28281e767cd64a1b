"""Durable events through the public API: what a receipt promises, and what becomes of an event."""

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.errors import (
    Conflict,
    CursorExpired,
    Fenced,
    InvalidCursor,
    InvalidParams,
    LoomError,
    NotSupported,
)
from loom.testing import Harness


def collecting(name: str = "ears", **how: Any) -> tuple[loom.App, list[loom.Event[Any]]]:
    """An app whose one agent keeps what it hears."""
    app, heard = loom.App("shop"), list[loom.Event[Any]]()

    @app.agent(name, topics=["order.>"], **how)
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        heard.append(event)

    return app, heard


def data_of(events: Sequence[loom.Event[Any]]) -> list[Any]:
    return [event.data for event in events]


@pytest.mark.requirement("SDKLOG-ACK")
@pytest.mark.parametrize("level", ["os", "disk"])
async def test_a_receipt_says_the_level_and_the_place_that_an_event_has_reached(
    level: Any, tmp_path: Path
) -> None:
    app, heard = collecting()
    async with Harness(app, data=tmp_path) as h:
        first = await h.ctx.emit("order.new", 1, ack=level)
        second = await h.ctx.emit("order.new", 2, ack=level)
        await h.idle()
        assert (first.level, second.level) == (level, level)
        assert first.position is not None
        assert second.position is not None
        assert first.position < second.position
        told = f"level={level!r}, matched={first.matched}, position={first.position!r}"
        assert repr(first) == f"Receipt(id={first.id!r}, {told})"
        assert [event.position for event in heard] == [first.position, second.position]
        assert [event.attempt for event in heard] == [1, 1]


@pytest.mark.requirement("SDKLOG-ACK")
async def test_a_topic_that_is_durable_by_configuration_needs_no_ack(tmp_path: Path) -> None:
    app, heard = collecting()
    async with Harness(app, data=tmp_path, durable=["order.>"]) as h:
        kept = await h.ctx.emit("order.new", 1)
        other = await h.ctx.emit("news", 1)
        await h.idle()
    assert (kept.level, other.level, other.position) == ("disk", "accepted", None)
    assert data_of(heard) == [1]


@pytest.mark.requirement("SDKLOG-ACK")
async def test_without_a_directory_no_more_is_promised_than_memory_can_keep() -> None:
    app, heard = collecting()
    async with Harness(app, durable=["order.>"]) as h:
        kept = await h.ctx.emit("order.new", 1)
        assert (kept.level, kept.position is None) == ("accepted", False)
        with pytest.raises(NotSupported, match="needs a log on disk") as refused:
            await h.ctx.emit("order.new", 2, ack="disk")
        assert refused.value.field == "ack"
        assert "--data" in str(refused.value.hint)
        await h.idle()
    assert data_of(heard) == [1]


@pytest.mark.requirement("SDKLOG-BAD-INPUT")
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ack": "synced"}, "ack"),
        ({"ack": 2}, "ack"),
        ({"ack": ["disk"]}, "ack"),
        ({"ack": "disk", "qos": "realtime"}, "qos"),
        ({"id": "a"}, "id"),
        ({"id": "a", "ack": "accepted"}, "id"),
        ({"id": 7, "ack": "os"}, "id"),
        ({"id": "", "ack": "os"}, "id"),
    ],
)
async def test_wrong_options_of_a_durable_publish_are_refused_by_their_name(
    options: dict[str, Any], field: str, tmp_path: Path
) -> None:
    app, _ = collecting()
    async with Harness(app, data=tmp_path) as h:
        with pytest.raises(InvalidParams) as refused:
            await h.ctx.emit("order.new", 1, **options)
        assert refused.value.field == field
        if options.get("id") == "a":
            assert 'ack="os"' in str(refused.value.hint)


@pytest.mark.requirement("SDKLOG-BAD-INPUT")
@pytest.mark.parametrize("data", [3, b"x", "", "a\0b", object()])
async def test_what_is_no_path_is_no_data_directory(data: Any) -> None:
    app, _ = collecting()
    with pytest.raises(InvalidParams) as refused:
        async with app.running(data=data):
            raise AssertionError
    assert refused.value.field == "data"


@pytest.mark.in_process("most are refused where they are written")
@pytest.mark.requirement("SDKLOG-BAD-INPUT")
@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"start": "yesterday?"}, None),
        ({"start": 3}, "start"),
        ({"start": ""}, "start"),
        ({"start": datetime(2026, 1, 1)}, "start"),  # noqa: DTZ001  that is the mistake
        ({"max_deliver": 0}, "max_deliver"),
        ({"max_deliver": 1_001}, "max_deliver"),
        ({"max_deliver": "2"}, "max_deliver"),
    ],
)
async def test_wrong_terms_of_a_consumer_are_refused_by_their_name(
    how: dict[str, Any], field: str | None
) -> None:
    async def declare_and_run() -> None:
        app, _ = collecting(**how)
        async with Harness(app):
            raise AssertionError

    with pytest.raises(LoomError) as refused:
        await declare_and_run()
    assert refused.value.code == ("INVALID_PARAMS" if field else "INVALID_CURSOR")
    assert refused.value.field == (field or "start")


@pytest.mark.requirement("SDKLOG-DEDUP")
async def test_a_second_event_with_an_id_is_the_first_one_also_after_a_restart(
    tmp_path: Path,
) -> None:
    app, heard = collecting()
    async with Harness(app, data=tmp_path) as h:
        first = await h.ctx.emit("order.new", 1, ack="os", id="order-17")
        again = await h.ctx.emit("order.new", 1, ack="os", id="order-17")
        await h.idle()
        with pytest.raises(Conflict):
            await h.ctx.emit("order.new", 2, ack="os", id="order-17")
    async with Harness(app, data=tmp_path) as h:
        third = await h.ctx.emit("order.new", 1, ack="os", id="order-17")
        await h.idle()
    assert {one.id for one in (first, again, third)} == {first.id}
    assert {one.position for one in (first, again, third)} == {first.position}
    assert data_of(heard) == [1]


@pytest.mark.requirement("SDKLOG-REDELIVER")
async def test_a_handler_that_fails_is_given_the_event_again_with_a_true_count(
    tmp_path: Path,
) -> None:
    app, attempts = loom.App("shop"), list[int]()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        attempts.append(event.attempt)
        if len(attempts) < 3:
            raise LoomError("not yet")

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("order.new", 1, ack="os")
        await h.idle()
        assert attempts == [1]
        await h.advance(10)
    async with Harness(app, data=tmp_path) as h:
        await h.advance(10)
    assert attempts == [1, 2, 3]


@pytest.mark.requirement("SDKLOG-REDELIVER")
async def test_what_was_not_done_is_given_again_after_a_restart_and_what_was_done_is_not(
    tmp_path: Path,
) -> None:
    app, attempts = loom.App("shop"), list[tuple[int, int]]()

    @app.agent("ears", topics=["order.>"], concurrency=8)
    async def ears(ctx: loom.Context[Any], event: loom.Event[int]) -> None:
        attempts.append((event.data, event.attempt))
        if event.data == 2 and event.attempt == 1:
            raise LoomError("not yet")

    async with Harness(app, data=tmp_path) as h:
        for n in (1, 2, 3):
            await h.ctx.emit("order.new", n, ack="os", key=str(n))
        await h.idle()
    async with Harness(app, data=tmp_path) as h:
        await h.advance(10)
    assert attempts == [(1, 1), (2, 1), (3, 1), (2, 2)]


@pytest.mark.requirement("SDKLOG-SETTLE")
async def test_an_error_after_an_ack_does_not_give_the_event_again(tmp_path: Path) -> None:
    app, attempts = loom.App("shop"), list[int]()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        attempts.append(event.attempt)
        await event.ack()
        await event.ack()
        raise LoomError("too late")

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("order.new", 1, ack="os")
        await h.advance(120)
    async with Harness(app, data=tmp_path) as h:
        await h.advance(120)
    assert attempts == [1]


@pytest.mark.requirement("SDKLOG-SETTLE")
async def test_a_nak_gives_the_event_again_after_its_delay(tmp_path: Path) -> None:
    app, attempts = loom.App("shop"), list[int]()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        attempts.append(event.attempt)
        if event.attempt == 1:
            await event.nak(delay=30)
        elif event.attempt == 2:
            await event.nak()

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("order.new", 1, ack="os")
        await h.advance(29)
        assert attempts == [1]
        await h.advance(2)
        assert attempts == [1, 2]
        await h.advance(3)
        assert attempts == [1, 2, 3]


@pytest.mark.requirement("SDKLOG-SETTLE")
async def test_an_event_that_is_given_up_is_a_dead_letter_and_not_given_again(
    tmp_path: Path,
) -> None:
    app, attempts = loom.App("shop"), list[int]()

    @app.agent("ears", topics=["order.>"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        attempts.append(event.attempt)
        await event.term(reason="no such customer")

    async with Harness(app, data=tmp_path) as h:
        receipt = await h.ctx.emit("order.new", 1, ack="os")
        await h.advance(120)
        (dead,) = h.events("loom.dead.>")
    assert attempts == [1]
    assert dead.topic == "loom.dead.order.new"
    assert dead.data["message"] == "no such customer"
    assert dead.data["position"] == receipt.position


@pytest.mark.requirement("SDKLOG-SETTLE")
async def test_what_fails_each_time_dies_after_its_last_attempt_and_its_lane_goes_on(
    tmp_path: Path,
) -> None:
    app, attempts = loom.App("shop"), list[tuple[int, int]]()

    @app.agent("ears", topics=["order.>"], max_deliver=3)
    async def ears(ctx: loom.Context[Any], event: loom.Event[int]) -> None:
        attempts.append((event.data, event.attempt))
        if event.data == 1:
            raise LoomError("never")

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("order.new", 1, ack="os", key="k")
        await h.ctx.emit("order.new", 2, ack="os", key="k")
        await h.advance(600)
        assert [event.data["attempt"] for event in h.events("loom.dead.>")] == [3]
    assert attempts == [(1, 1), (1, 2), (1, 3), (2, 1)]


@pytest.mark.requirement("SDKLOG-SETTLE")
async def test_only_durable_events_of_this_very_turn_can_be_settled(tmp_path: Path) -> None:
    app, refused = loom.App("shop"), list[LoomError]()
    kept: list[loom.Event[Any]] = []

    @app.agent("ears", topics=["order.>", "news"])
    async def ears(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        kept.append(event)
        if event.topic == "news":
            for settle in (event.ack, event.nak, event.extend, event.term):
                with pytest.raises(InvalidParams) as caught:
                    await settle()
                refused.append(caught.value)

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("news", 1)
        await h.ctx.emit("order.new", 1, ack="os")
        await h.idle()
        assert [error.field for error in refused] == ["event"] * 4
        with pytest.raises(Fenced):
            await kept[1].ack()
        for delay in (-1, float("nan"), "soon", 1e9, 86_400.5):
            with pytest.raises(InvalidParams) as caught:
                await kept[1].nak(delay=delay)  # pyright: ignore[reportArgumentType]
            assert caught.value.field == "delay"
            if isinstance(delay, float) and not math.isnan(delay):
                assert (caught.value.limit, caught.value.hint) == (
                    "ttl_ms_max",
                    "give seconds, from 0 to 86,400",
                )
        with pytest.raises(InvalidParams) as caught:
            await kept[1].term(reason=3)  # pyright: ignore[reportArgumentType]
        assert caught.value.field == "reason"


@pytest.mark.requirement("SDKLOG-START")
async def test_a_new_group_begins_where_it_says_and_a_known_one_where_it_was(
    tmp_path: Path,
) -> None:
    first, _ = collecting()
    async with Harness(first, data=tmp_path) as h:
        receipts = [await h.ctx.emit("order.new", n, ack="os") for n in range(3)]
        await h.idle()
        middle = receipts[1].position
        assert middle is not None
        await h.advance(60)
        since = datetime.fromtimestamp(h.ctx.now() - 1, UTC)
        await h.ctx.emit("order.new", 3, ack="os")
        await h.idle()
    starts: list[tuple[Any, list[int]]] = [
        ("beginning", [0, 1, 2, 3]),
        (middle, [1, 2, 3]),
        (since, [3]),
        ("now", []),
    ]
    for number, (start, expected) in enumerate(starts):
        app, heard = collecting(f"late{number}", start=start)
        for _ in range(2):
            async with Harness(app, data=tmp_path) as h:
                await h.idle()
            assert data_of(heard) == expected


@pytest.mark.requirement("SDKLOG-WATCH")
async def test_a_watcher_reads_the_log_from_a_place_on_and_then_what_comes(
    tmp_path: Path,
) -> None:
    app, _ = collecting()
    async with Harness(app, data=tmp_path) as h:
        receipts = [await h.ctx.emit("order.new", n, ack="os") for n in range(5)]
        await h.ctx.emit("other", "x", ack="os")
        position = receipts[2].position
        assert position is not None
        seen: list[Any] = []
        async with h.ctx.watch("order.>", start=position) as events:
            for n in range(5, 8):
                await h.ctx.emit("order.new", n, ack="os")
            await h.ctx.emit("order.new", "not durable")
            async for event in events:
                seen.append(event.data)
                if event.data == "not durable":
                    break
        assert [one for one in seen if one != "not durable"] == [2, 3, 4, 5, 6, 7]


@pytest.mark.requirement("SDKLOG-WATCH")
async def test_a_watcher_that_is_too_slow_for_its_queue_misses_nothing_that_is_durable(
    tmp_path: Path,
) -> None:
    app = loom.App("shop")
    count = 3_000
    async with app.running(data=tmp_path) as ctx, ctx.watch("order.>", start="beginning") as events:
        seen = [(await anext(events)).data for _ in range(0)]
        for first in range(0, count, 100):
            await asyncio.gather(
                *(ctx.emit("order.new", n, ack="os") for n in range(first, first + 100))
            )
        async for event in events:
            seen.append(event.data)
            if len(seen) == count:
                break
    assert seen == list(range(count))


@pytest.mark.requirement("SDKLOG-WATCH")
async def test_a_place_that_is_none_of_this_log_is_refused(tmp_path: Path) -> None:
    app, _ = collecting()
    async with Harness(app, data=tmp_path / "one") as h:
        receipt = await h.ctx.emit("order.new", 1, ack="os")
        log, part, _ = str(receipt.position).split("-")
        for wrong in (f"a9-{part}-a1", f"{log}-a9-a1", f"{log}-{part}-c999", "nonsense", "@1x"):
            async with h.ctx.watch("order.>", start=loom.Position(wrong)) as events:
                with pytest.raises((InvalidCursor, CursorExpired)):
                    await anext(events)
        with pytest.raises(InvalidParams):
            async with h.ctx.watch("order.>", start=3):  # pyright: ignore[reportArgumentType]
                raise AssertionError
