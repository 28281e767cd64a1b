"""The link to a node, over a session whose notices a script writes."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

import loom
from loom import _engine as engine
from loom.codec import decode, encode
from loom.errors import CODES, Denied, LoomError, Unauthenticated, Unavailable
from loom.link import Parked, SystemClock
from loom.link.remote import Remote, RemoteLink, RemoteRoutes
from loom.runtime.stream import Subscription

LINK = 11
ACCEPTED, REFUSED = engine.NOTICE_ACCEPTED, engine.NOTICE_REFUSED


class Scripted:
    """A session at a node that says what a test lets it say."""

    root = 1

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()
        self.notices: list[tuple[int, int, int, Any]] = []
        self.asked: list[tuple[str, Any]] = []
        self._number = 1

    def say(self, kind: int, ident: int, code: int, body: Any) -> None:
        self.notices.append((kind, ident, code, body))
        os.write(self._write, b".")

    def link(self, state: str, **detail: Any) -> None:
        self.say(LINK, 0, 0, encode({"state": state, "node": "loom://n:1", **detail}))

    @property
    def pending(self) -> bool:
        return bool(self.notices)

    def drain(self, most: int) -> list[tuple[int, int, int, Any]]:
        os.set_blocking(self.fd, False)
        with suppress(BlockingIOError):
            os.read(self.fd, 4096)
        taken, self.notices = self.notices[:most], self.notices[most:]
        return taken

    def _ask(self, what: str, *args: Any) -> int:
        self._number += 1
        self.asked.append((what, args))
        return self._number

    def emit(self, sender: int, turn: object, topic: str, payload: bytes, qos: int) -> int | None:
        return None if topic == "no.room" else self._ask("emit", topic)

    def subscribe(self, filters: Sequence[str], qos: int) -> int:
        return self._ask("subscribe", filters)

    def states(self, sender: int, lane: str | None) -> int:
        return self._ask("states", sender)

    def memories(self, key: str | None) -> int:
        return self._ask("memories")

    def directory(self, kind: str) -> int:
        return self._ask("directory", kind)

    def route(self, capability: str, weights: object) -> None:
        self._ask("route", capability)

    def take(self, handle: int, done: object) -> None:
        return None

    def remove(self, handle: int) -> None:
        self._ask("remove", handle)

    def tick(self) -> float | None:
        return None

    def stats(self) -> bytes:
        return b'{"reconnects":2}'

    def join(self, seconds: float) -> int:
        self.asked.append(("join", seconds))
        return 0

    def close(self) -> None:
        os.close(self._write)
        os.close(self.fd)


@pytest.fixture(autouse=True)
def _notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "NOTICE_LINK", LINK, raising=False)


@pytest.fixture
async def session() -> Scripted:
    return Scripted()


@pytest.fixture
async def link(session: Scripted) -> AsyncGenerator[RemoteLink]:
    clock = Remote("loom://n:1", "t").clock
    assert isinstance(clock, SystemClock)
    made = RemoteLink(
        cast("Any", session),
        clock,
        engine.EngineError,
        namespace="",
        name="shop",
        url="loom://n:1",
    )
    yield made
    if made.state != "closed":
        made.close()


@pytest.mark.requirement("BRIDGE-LINK-STATE")
async def test_a_link_is_up_once_the_node_has_taken_it(link: RemoteLink, session: Scripted) -> None:
    assert link.state == "connecting"
    session.link("up", namespace="shop")
    await link.connected()
    assert (link.state, link.namespace) == ("up", "shop")
    assert link.stats() == {
        "state": "up",
        "changes": 1,
        "waiting": 0,
        "reconnects": 2,
        "node": "loom://n:1",
    }


@pytest.mark.requirement("BRIDGE-LINK-STATE")
async def test_a_node_that_refuses_is_told_with_its_reason(
    link: RemoteLink, session: Scripted
) -> None:
    waiting = asyncio.ensure_future(link.states(1))
    await asyncio.sleep(0)
    session.link("refused", code=CODES["UNAUTHENTICATED"], message="no such token", field="token")
    with pytest.raises(Unauthenticated) as refused:
        await link.connected()
    assert refused.value.field == "token"
    assert link.state == "closed"
    with pytest.raises(Unauthenticated):
        await waiting
    with pytest.raises(Unauthenticated):
        await link.memories()


@pytest.mark.requirement("BRIDGE-LINK-STATE")
async def test_where_nobody_answers_that_is_said_with_the_way_out(
    link: RemoteLink, session: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loom.link.remote.CONNECT_SECONDS", 0.05)
    session.link("connecting", reason="connection refused")
    with pytest.raises(Unavailable) as refused:
        await link.connected()
    assert "connection refused" in refused.value.message
    assert refused.value.limit == "connect_seconds"
    assert "loom up" in str(refused.value.hint)


@pytest.mark.requirement("BRIDGE-LINK-STATE")
async def test_each_change_is_an_event_a_line_of_the_log_and_counted(
    link: RemoteLink, session: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "loom.link")
    heard = Subscription(link, ["loom.link.*"], qos="realtime")
    deaf = Subscription(link, ["order.>"], qos="realtime")
    session.link("up")
    session.link("lost", reason="reset by peer")
    session.link("lost", reason="again")
    session.link("up", missed_from="p7", resumed=False)
    await link.connected()
    link.drain()
    events = [await anext(heard) for _ in range(3)]
    assert [event.topic for event in events] == ["loom.link.up", "loom.link.lost", "loom.link.up"]
    assert events[1].data["reason"] == "reset by peer"
    assert (events[2].data["missed_from"], events[2].data["resumed"]) == ("p7", False)
    assert decode(events[0].payload)["node"] == "loom://n:1"
    with pytest.raises(LoomError):
        await events[0].ack()
    levels = [(record.levelname, record.name) for record in caplog.records]
    assert levels == [("INFO", "loom.link"), ("WARNING", "loom.link"), ("INFO", "loom.link")]
    assert "p7" in caplog.records[2].getMessage()
    assert link.changes == 3
    deaf.close()
    with pytest.raises(StopAsyncIteration):
        await anext(deaf)


@pytest.mark.requirement("BRIDGE-LINK-SAME")
async def test_what_is_registered_is_waited_for(link: RemoteLink, session: Scripted) -> None:
    taken = Subscription(link, ["order.>"], qos="batched")
    waiting = asyncio.ensure_future(taken.started())
    await asyncio.sleep(0)
    assert not waiting.done()
    session.say(ACCEPTED, 2, 0, None)
    await waiting
    refused = Subscription(link, ["bank.>"], qos="batched")
    waiting = asyncio.ensure_future(refused.started())
    await asyncio.sleep(0)
    session.say(REFUSED, 3, CODES["DENIED"], encode({"message": "no", "field": "filters"}))
    with pytest.raises(Denied) as error:
        await waiting
    assert error.value.field == "filters"
    assert ("remove", (3,)) in session.asked


@pytest.mark.requirement("BRIDGE-LINK-SAME")
async def test_what_was_registered_and_is_refused_later_is_told(
    link: RemoteLink, session: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    session.say(REFUSED, 2, CODES["FENCED"], encode({"message": "a newer one"}))
    link.drain()
    assert "FENCED: a newer one" in caplog.text
    assert link.waiting == 0


@pytest.mark.requirement("BRIDGE-LINK-SAME")
async def test_what_is_asked_for_is_the_answer_of_the_node(
    link: RemoteLink, session: Scripted
) -> None:
    asked = asyncio.ensure_future(link.states(7))
    also = asyncio.ensure_future(link.memories())
    await asyncio.sleep(0)
    session.say(ACCEPTED, 3, 0, [("k", b"1", None)])
    session.say(ACCEPTED, 2, 0, [("lane", b"{}")])
    assert await asked == [("lane", b"{}")]
    assert await also == [("k", b"1", None)]
    assert session.asked == [("states", (7,)), ("memories", ())]


@pytest.mark.requirement("BRIDGE-LINK-SAME")
async def test_an_event_that_the_node_has_not_taken_yet_is_waited_for(
    link: RemoteLink, session: Scripted
) -> None:
    assert link.emit(1, None, "no.room", b"1", 1) is None
    with pytest.raises(Parked) as sent:
        link.emit(1, None, "order.made", b"1", 1)
    taken = asyncio.ensure_future(link.parked(sent.value.ticket))
    await asyncio.sleep(0)
    session.say(ACCEPTED, sent.value.ticket, 0, "the receipt")
    assert await taken == "the receipt"


@pytest.mark.requirement("BRIDGE-LINK-SAME")
async def test_who_waits_is_told_when_the_link_is_closed(
    link: RemoteLink, session: Scripted
) -> None:
    asked = asyncio.ensure_future(link.states(7))
    await asyncio.sleep(0)
    link.close()
    with pytest.raises(loom.LoomError) as error:
        await asked
    assert error.value.code == "CANCELLED"
    assert link.state == "closed"


@pytest.mark.requirement("BRIDGE-LINK-SAME")
async def test_a_selection_table_is_written_at_the_node_and_known_here(
    link: RemoteLink, session: Scripted
) -> None:
    table = RemoteRoutes(link)
    table.write("draft", {"fast": 2.0})
    assert table.read() == {"draft": {"fast": 2.0}}
    table.write("draft", None)
    assert table.read() == {}
    assert session.asked == [("route", ("draft",))] * 2
