"""The compiled engine as ``loom.link`` sees it: conversion, waking, forking, leaving."""

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loom import _engine as engine_module
from loom._engine import Delivery, Engine, EngineError, Receipt, Session

REALTIME, BATCHED, BACKGROUND = 0, 1, 2
PURE, UNSAFE = 0, 3
INVALID_PARAMS, TIMEOUT, PROVIDER_UNAVAILABLE = 1, 5, 6
NOT_FOUND, NOT_SUPPORTED, DENIED = 8, 9, 10
CANCELLED, FENCED, INDETERMINATE, UNAVAILABLE = 13, 15, 18, 22


@dataclass
class Inbox:
    """What one drain gave, told apart."""

    ready: list[int] = field(default_factory=list[int])
    answers: list[tuple[int, Delivery]] = field(default_factory=list[tuple[int, Delivery]])
    outcomes: list[tuple[int, int, bytes]] = field(default_factory=list[tuple[int, int, bytes]])
    chunks: list[bytes] = field(default_factory=list[bytes])
    credits: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    cancels: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    accepted: list[tuple[int, Receipt]] = field(default_factory=list[tuple[int, Receipt]])


def drain(session: Session) -> Inbox:
    inbox = Inbox()
    for kind, ident, number, value in session.drain(256):
        if kind == engine_module.NOTICE_READY:
            inbox.ready.append(ident)
        elif kind == engine_module.NOTICE_ANSWER:
            assert isinstance(value, Delivery)
            inbox.answers.append((ident, value))
        elif kind == engine_module.NOTICE_OUTCOME:
            assert isinstance(value, bytes)
            inbox.outcomes.append((ident, number, value))
        elif kind == engine_module.NOTICE_CHUNK:
            assert isinstance(value, bytes)
            inbox.chunks.append(value)
        elif kind == engine_module.NOTICE_CREDIT:
            inbox.credits.append((ident, number))
        elif kind == engine_module.NOTICE_CANCEL:
            inbox.cancels.append((ident, number))
        elif kind == engine_module.NOTICE_ACCEPTED:
            assert isinstance(value, Receipt)
            inbox.accepted.append((ident, value))
    return inbox


def is_readable(session: Session) -> bool:
    return bool(select.select([session.fd], [], [], 0)[0])


def emit(session: Session, topic: str, payload: bytes = b"{}") -> Receipt:
    receipt = session.offer(session.root, None, topic, payload, BATCHED, None)
    assert isinstance(receipt, Receipt)
    return receipt


def request(session: Session, topic: str, timeout: float = 1.0) -> int:
    return session.request(session.root, None, topic, b"{}", timeout, 1, False, None)


def call(session: Session, name: str, credit: int = 0) -> int:
    return session.call(session.root, None, name, b"{}", 1.0, None, credit, None)


def must_take(session: Session, handle: int) -> Delivery:
    delivery = session.take(handle, None)
    assert delivery is not None
    return delivery


def refused(caught: pytest.ExceptionInfo[EngineError]) -> tuple[int, str | None, str | None]:
    code, _, name, limit, _, _ = caught.value.args
    return code, name, limit


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(virtual_clock=True, seed=1)
    yield engine
    audit = json.loads(engine.audit())
    assert audit["balanced"], audit


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    session = engine.attach("default", "app")
    yield session
    session.close()


@pytest.fixture
def other(engine: Engine) -> Iterator[Session]:
    session = engine.attach("default", "other")
    yield session
    session.close()


def test_an_event_is_read_field_by_field(engine: Engine, session: Session) -> None:
    handle = session.register("planner", ["question.>"], "", 4, b"{}", False)
    options = (
        "order-7",
        "thread-1",
        5_000,
        "text/plain",
        [("shop", "north")],
        ["urgent"],
        "00-aa-bb-01",
        None,
        None,
    )
    receipt = session.offer(session.root, None, "question.new", b"hi", BATCHED, options)
    assert isinstance(receipt, Receipt)
    assert (receipt.level, receipt.matched, receipt.position) == ("accepted", 1, None)
    event = must_take(session, handle)
    assert event.id == receipt.id == event.run_id
    assert (event.topic, event.payload, event.content_type) == ("question.new", b"hi", "text/plain")
    assert (event.is_json, event.sender, event.namespace) == (False, "default/app", "default")
    assert (event.thread_id, event.key, event.ttl_ms) == ("thread-1", "order-7", 5_000)
    assert (event.headers, event.labels) == ({"shop": "north"}, ["urgent"])
    assert (event.traceparent, event.causes, event.hop, event.qos) == (
        "00-aa-bb-01",
        [],
        0,
        BATCHED,
    )
    assert (event.causation_id, event.correlation_id, event.reply_to) == (None, None, None)
    assert (event.wants_reply, event.deadline, event.attempt) == (False, None, 1)
    assert event.time == engine.wall()


@pytest.mark.requirement("EVENT-IMMUTABLE")
def test_what_was_delivered_cannot_be_changed(session: Session) -> None:
    handle = session.register("a", ["q"], "", 4, b"{}", False)
    emit(session, "q")
    event: Any = must_take(session, handle)
    with pytest.raises(AttributeError):
        event.topic = "other"
    with pytest.raises(AttributeError):
        event.payload = b"other"


def test_what_a_turn_sends_quotes_its_lease(session: Session) -> None:
    first = session.register("a", ["q"], "", 4, b"{}", False)
    second = session.register("b", ["r"], "", 4, b"{}", False)
    root = emit(session, "q")
    turn = must_take(session, first)
    session.offer(first, turn, "r", b"{}", BATCHED, None)
    event = must_take(session, second)
    assert (event.run_id, event.causation_id, event.sender, event.hop) == (
        root.id,
        root.id,
        "default/a",
        1,
    )


def test_a_request_is_answered(session: Session, other: Session) -> None:
    handle = session.register("a", ["q"], "", 4, b"{}", False)
    asked = request(other, "q")
    turn = must_take(session, handle)
    assert turn.wants_reply
    assert turn.reply_to is not None
    assert turn.deadline is not None
    assert session.reply(turn.lease, b'"yes"', None)
    assert not session.reply(turn.lease, b'"again"', None)
    inbox = drain(other)
    assert inbox.outcomes == [(asked, 0, b"")]
    ((answered, answer),) = inbox.answers
    assert (answered, answer.payload, answer.lease) == (asked, b'"yes"', 0)
    assert (answer.sender, answer.causation_id) == ("default/a", turn.id)


@pytest.mark.requirement("REQUEST-UNHEARD")
def test_a_request_nobody_hears_says_so_at_once(session: Session) -> None:
    with pytest.raises(EngineError) as caught:
        request(session, "nobody")
    assert refused(caught) == (UNAVAILABLE, "topic", None)


def test_a_request_without_an_answer_ends_by_its_deadline(engine: Engine, session: Session) -> None:
    session.register("a", ["q"], "", 4, b"{}", False)
    asked = request(session, "q", 0.5)
    assert session.tick() == pytest.approx(0.5)
    engine.advance(0.5)
    session.tick()
    ((ended, code, detail),) = drain(session).outcomes
    assert (ended, code) == (asked, TIMEOUT)
    assert json.loads(detail)["matched"] == 1


def test_a_call_ends_with_its_result(session: Session, other: Session) -> None:
    handle = session.provide("notes.search", "1", UNSAFE, 4, b"{}", "app", False)
    called = call(other, "notes.search")
    work = must_take(session, handle)
    assert (work.topic, work.streamed, work.credit) == ("notes.search", False, 0)
    assert work.effect_id is not None
    assert session.result(work.lease, b"[1]")
    assert drain(other).outcomes == [(called, 0, b"[1]")]


@pytest.mark.requirement("CALL-UNKNOWN")
def test_an_unknown_capability_is_not_found(session: Session) -> None:
    with pytest.raises(EngineError) as caught:
        call(session, "nobody.knows")
    assert refused(caught) == (NOT_FOUND, "capability", None)
    session.remove(session.provide("somebody.knew", "1", PURE, 1, b"{}", "app", False))
    with pytest.raises(EngineError) as caught:
        call(session, "somebody.knew")
    assert refused(caught)[0] == PROVIDER_UNAVAILABLE


@pytest.mark.requirement("CALL-INDETERMINATE")
def test_a_call_that_was_under_way_ends_indeterminate(session: Session, other: Session) -> None:
    handle = session.provide("mail.send", "1", UNSAFE, 4, b"{}", "app", False)
    called = call(other, "mail.send")
    work = must_take(session, handle)
    other.cancel(called)
    assert [code for _, code, _ in drain(other).outcomes] == [INDETERMINATE]
    assert drain(session).cancels == [(work.lease, INDETERMINATE)]


@pytest.mark.requirement("CALL-LATE")
@pytest.mark.requirement("CALL-FOREIGN")
def test_late_double_and_foreign_results_are_counted(
    engine: Engine, session: Session, other: Session
) -> None:
    handle = session.provide("tool", "1", PURE, 4, b"{}", "app", False)
    late = call(other, "tool")
    work = must_take(session, handle)
    other.cancel(late)
    with pytest.raises(EngineError) as caught:
        other.result(work.lease, b"1")
    assert refused(caught)[0] == FENCED
    assert not session.result(work.lease, b"1")
    assert not session.result(work.lease, b"1")
    assert [code for _, code, _ in drain(other).outcomes] == [CANCELLED]
    calls = json.loads(engine.stats())["calls"]
    assert (calls["late"], calls["double"], calls["foreign"], calls["pending"]) == (1, 1, 1, 0)


@pytest.mark.requirement("STREAM-CREDIT")
def test_a_stream_waits_for_credit(session: Session, other: Session) -> None:
    handle = session.provide("tool", "1", PURE, 4, b"{}", "app", False)
    called = call(other, "tool", credit=1)
    work = must_take(session, handle)
    assert (work.streamed, work.credit) == (True, 1)
    assert [session.chunk(work.lease, b"1"), session.chunk(work.lease, b"2")] == [True, False]
    other.grant(called, 100_000 // 100)
    assert drain(session).credits == [(work.lease, 1_000)]
    assert session.chunk(work.lease, b"2")
    session.result(work.lease, b"null")
    inbox = drain(other)
    assert inbox.chunks == [b"1", b"2"]
    assert inbox.outcomes == [(called, 0, b"null")]


def test_an_error_of_a_handler_reaches_who_asked_and_who_watches(session: Session) -> None:
    handle = session.register("a", ["q"], "", 4, b"{}", False)
    watch = session.subscribe(["loom.error.>"], BATCHED)
    request(session, "q")
    turn = must_take(session, handle)
    assert session.fail(turn.lease, 7, b'{"message":"it broke","field":"x"}')
    ((_, code, detail),) = drain(session).outcomes
    body = json.loads(detail)
    assert (code, body["message"], body["field"], body["who"]) == (7, "it broke", "x", "default/a")
    error = must_take(session, watch)
    assert error.topic == "loom.error.handler_error"
    assert json.loads(error.payload)["event_id"] == turn.id
    assert session.take(watch, None) is None


def test_logs_and_reports_are_events_of_the_engine(session: Session) -> None:
    watch = session.subscribe(["loom.log.>", "loom.error.>"], BATCHED)
    session.log(session.root, None, "info", b'{"message":"hello"}')
    session.report(session.root, None, 3, b'{"message":"bad"}')
    assert must_take(session, watch).topic == "loom.log.info"
    assert must_take(session, watch).topic == "loom.error.capability_error"
    with pytest.raises(EngineError) as caught:
        session.log(session.root, None, "loud", b"{}")
    assert refused(caught)[:2] == (INVALID_PARAMS, "level")


@pytest.mark.requirement("QOS-BATCHED")
def test_an_offer_without_room_is_a_ticket_first(session: Session) -> None:
    handle = session.register("a", ["q"], "", 1, b"{}", False)
    for _ in range(1_024):
        emit(session, "q")
    ticket = session.offer(session.root, None, "q", b"{}", BATCHED, None)
    assert isinstance(ticket, int)
    must_take(session, handle)
    ((accepted, receipt),) = drain(session).accepted
    assert (accepted, receipt.matched) == (ticket, 1)


@pytest.mark.requirement("BAD-INPUT")
def test_wrong_arguments_name_their_field(session: Session) -> None:
    offers: list[tuple[tuple[Any, ...], tuple[int, str, str | None]]]
    nothing = [None] * 9
    offers = [
        (("a..b",), (INVALID_PARAMS, "topic", None)),
        (("a" * 300,), (INVALID_PARAMS, "topic", "topic_bytes")),
        (("\ud800",), (INVALID_PARAMS, "topic", None)),
        (("loom.error.x",), (DENIED, "topic", None)),
        (("q", b"{}", 3), (INVALID_PARAMS, "qos", None)),
        (("q", b"{}", 1, (3, *nothing[1:])), (INVALID_PARAMS, "options", None)),
        (("q", b"{}", 1, ("", *nothing[1:])), (INVALID_PARAMS, "key", None)),
        (("q", b"0" * (1_048_576 + 1)), (INVALID_PARAMS, "payload", "payload_bytes")),
    ]
    for given, expected in offers:
        arguments: list[Any] = [*given, *("q", b"{}", BATCHED, None)[len(given) :]]
        with pytest.raises(EngineError) as caught:
            session.offer(session.root, None, *arguments)
        assert refused(caught) == expected
    for seconds in (float("nan"), -1.0, float("inf"), 1e9):
        with pytest.raises(EngineError) as caught:
            request(session, "q", seconds)
        assert refused(caught)[:2] == (INVALID_PARAMS, "timeout")


@pytest.mark.requirement("LEASE-FENCED")
def test_handles_of_another_session_are_fenced(session: Session, other: Session) -> None:
    handle = session.register("a", ["q"], "", 4, b"{}", False)
    for use in (
        lambda: other.take(handle, None),
        lambda: other.remove(handle),
        lambda: other.offer(handle, None, "q", b"{}", BATCHED, None),
    ):
        with pytest.raises(EngineError) as caught:
            use()
        assert refused(caught)[0] == FENCED


def test_a_closed_session_is_fenced_and_closing_twice_is_fine(engine: Engine) -> None:
    session = engine.attach("default", "app")
    session.register("a", ["q"], "", 4, b"{}", False)
    emit(session, "q")
    session.close()
    session.close()
    assert not session.pending
    with pytest.raises(EngineError) as caught:
        session.drain(1)
    assert refused(caught)[0] == FENCED


@pytest.mark.requirement("BOUNDED")
def test_a_session_that_is_let_go_takes_everything_along(engine: Engine) -> None:
    session = engine.attach("default", "app")
    session.register("a", ["q"], "", 4, b"{}", False)
    session.provide("tool", "1", PURE, 4, b"{}", "app", False)
    emit(session, "q")
    call(session, "tool")
    del session
    gauges = json.loads(engine.stats())["gauges"]
    assert set(gauges.values()) == {0}, gauges


def test_only_a_virtual_clock_is_moved_by_hand(engine: Engine) -> None:
    before = engine.now()
    engine.advance(1.5)
    assert engine.now() == pytest.approx(before + 1.5)
    with pytest.raises(EngineError) as caught:
        Engine().advance(1.0)
    assert refused(caught)[0] == NOT_SUPPORTED
    with pytest.raises(EngineError):
        engine.advance(float("nan"))


def test_the_same_seed_gives_the_same_ids() -> None:
    def first_id(seed: int) -> str:
        session = Engine(virtual_clock=True, seed=seed).attach("default", "app")
        return emit(session, "q").id

    assert first_id(1) == first_id(1) != first_id(2)


def test_the_directory_shows_what_was_registered(engine: Engine, session: Session) -> None:
    session.register("b", ["q"], "", 4, b'{"name":"b"}', False)
    session.register("a", ["q"], "", 4, b'{"name":"a"}', False)
    load = {"queued": 0, "leased": 0, "lagging": False, "delivered": 0, "failed": 0, "dropped": 0}
    assert [json.loads(entry) for entry in engine.directory("default", "agent")] == [
        {"name": "a", "health": "up", **load},
        {"name": "b", "health": "up", **load},
    ]
    assert engine.directory("elsewhere", "agent") == []
    with pytest.raises(EngineError):
        engine.directory("default", "nothing")


def test_the_state_of_an_agent_shows_in_the_directory_and_stops_its_work(
    engine: Engine, session: Session
) -> None:
    handle = session.register("a", ["q"], "", 4, b"{}", False)
    session.set_state(handle, 1)
    emit(session, "q")
    assert session.take(handle, None) is None
    (entry,) = engine.directory("default", "agent")
    assert json.loads(entry)["health"] == "restarting"
    session.set_state(handle, 0)
    delivery = session.take(handle, None)
    assert delivery is not None
    assert delivery.topic == "q"
    session.set_state(handle, 2)
    assert emit(session, "q").matched == 0
    with pytest.raises(EngineError) as refused:
        session.set_state(handle, 3)
    assert refused.value.args[2] == "state"
    session.take(handle, delivery)


def test_an_agent_that_takes_its_events_as_realtime_keeps_the_newest(session: Session) -> None:
    handle = session.register("a", ["q"], "", 4, b"{}", True)
    ids = [emit(session, "q").id for _ in range(1_025)]
    delivery = session.take(handle, None)
    assert delivery is not None
    assert delivery.id == ids[1]
    session.remove(handle)


@pytest.mark.requirement("LOADED-ANYWHERE")
def test_a_thread_that_ends_may_have_loaded_the_engine() -> None:
    code = """
import threading


def use():
    from loom._engine import Engine

    Engine().attach("default", "app").emit


for _ in range(50):
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.requirement("WAKE-LOOP")
def test_a_session_is_woken_by_another_and_not_by_itself(session: Session, other: Session) -> None:
    handle = session.register("a", ["q"], "", 4, b"{}", False)
    emit(session, "q")
    assert session.pending
    assert not is_readable(session)
    assert drain(session).ready == [handle]
    assert not session.pending
    turn = must_take(session, handle)
    assert session.take(handle, turn) is None
    emit(other, "q")
    assert session.pending
    assert is_readable(session)
    assert drain(session).ready == [handle]
    assert not is_readable(session)


@pytest.mark.requirement("WAKE-LOOP")
def test_a_loop_that_the_log_has_woken_does_not_turn_in_vain(tmp_path: Path) -> None:
    engine = Engine(data=str(tmp_path))
    engine.open("default")
    session = engine.attach("default", "app")
    in_vain = 0
    for _ in range(count := 1_000):
        ticket = session.offer(session.root, None, "q", b"{}", BATCHED, None, 1)
        assert isinstance(ticket, int)
        while not drain(session).accepted:
            in_vain += 1
            assert select.select([session.fd], [], [], 20)[0]
    session.close()
    engine.close()
    assert in_vain < 3 * count  # one waits, one may come when nothing is there any more


@pytest.mark.requirement("WAKE-LOOP")
def test_a_session_is_woken_when_another_thread_uses_it(session: Session) -> None:
    session.register("a", ["q"], "", 4, b"{}", False)
    thread = threading.Thread(target=emit, args=(session, "q"))
    thread.start()
    thread.join()
    assert is_readable(session)


@pytest.mark.requirement("WAKE-LOOP")
def test_no_wake_up_is_lost_between_two_threads(engine: Engine) -> None:
    rounds = 2_000
    answering, asking = engine.attach("default", "answering"), engine.attach("default", "asking")
    handle = answering.register("a", ["q"], "", 64, b"{}", False)

    def answer() -> None:
        left = rounds
        while left:
            assert select.select([answering.fd], [], [], 10)[0], "not woken"
            answering.drain(256)
            done: Delivery | None = None
            while (turn := answering.take(handle, done)) is not None:
                answering.reply(turn.lease, b"1", None)
                done = turn
                left -= 1

    thread = threading.Thread(target=answer)
    thread.start()
    answered = 0
    for _ in range(rounds):
        asking.request(asking.root, None, "q", b"1", 60.0, 1, False, None)
        if not asking.pending:
            assert select.select([asking.fd], [], [], 10)[0], "not woken"
        answered += len(drain(asking).outcomes)
    while answered < rounds:
        assert asking.pending or select.select([asking.fd], [], [], 10)[0], "not woken"
        answered += len(drain(asking).outcomes)
    thread.join()


def test_a_drain_takes_no_more_than_it_is_asked_for(session: Session) -> None:
    for name in ("a", "b", "c"):
        session.register(name, ["q"], "", 4, b"{}", False)
    emit(session, "q")
    assert len(session.drain(2)) == 2
    assert session.pending
    assert len(session.drain(2)) == 1
    assert not session.pending


FORK = """
import os, sys
from loom._engine import Engine, EngineError

engine = Engine()
session = engine.attach("default", "app")
handle = session.register("a", ["q"], "", 1, b"{}", False)
child = os.fork()
if child == 0:
    refused = 0
    for use in (
        lambda: engine.stats(),
        lambda: session.offer(session.root, None, "q", b"1", 1, None),
        lambda: session.drain(1),
        lambda: engine.attach("default", "again"),
    ):
        try:
            use()
        except EngineError as error:
            refused += error.args[0] == 15
    fresh = Engine().attach("default", "child")
    fresh.register("a", ["q"], "", 1, b"{}", False)
    matched = fresh.offer(fresh.root, None, "q", b"1", 1, None).matched
    del session, engine
    os._exit(0 if (refused, matched) == (4, 1) else 1)
_, status = os.waitpid(child, 0)
assert session.offer(session.root, None, "q", b"1", 1, None).matched == 1
sys.exit(os.waitstatus_to_exitcode(status))
"""

EXIT = """
import sys
from loom._engine import Engine

engine = Engine()
session = engine.attach("default", "app")
handle = session.register("a", ["q"], "", 1, b"{}", False)
stream = session.subscribe([">"], 0)
session.offer(session.root, None, "q", b"1", 1, None)
turn = session.take(handle, None)
session.request(session.root, None, "q", b"1", 60.0, 1, False, None)
sys.exit(7)
"""


def run(program: str) -> int:
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    return subprocess.run(command, check=False, timeout=15, env=dict(os.environ)).returncode


@pytest.mark.requirement("FORK-SAFE")
def test_after_a_fork_the_child_is_refused_and_the_parent_goes_on() -> None:
    assert run(FORK) == 0


@pytest.mark.requirement("EXIT-CLEAN")
def test_an_interpreter_leaves_with_work_in_flight() -> None:
    assert run(EXIT) == 7


@pytest.mark.requirement("NO-RUST-CALLS")
def test_the_engine_starts_no_thread(session: Session) -> None:
    tasks = f"/proc/{os.getpid()}/task"
    if not os.path.isdir(tasks):
        pytest.skip("threads are counted where /proc shows them")
    before = len(os.listdir(tasks))
    engine = Engine()
    engine.attach("default", "app").register("a", ["q"], "", 4, b"{}", False)
    assert len(os.listdir(tasks)) == before


def test_a_quick_publish_is_taken_at_once_or_not_at_all(engine: Engine, session: Session) -> None:
    def quick(payload: bytes) -> object:
        return session.emit(session.root, None, "q", payload, 1)

    session.register("a", ["q"], "", 64, b"{}", False)
    for _ in range(1_024):
        assert isinstance(quick(b"1"), Receipt)
    assert quick(b"1") is None  # no room
    assert quick(b'{"a":null}') is None  # may hide NaN
    stats = json.loads(engine.stats())
    assert stats["gauges"]["parked"] == 0
    assert stats["by_qos"]["batched"]["published"] == 1_024


@pytest.mark.requirement("WAKE-LOOP")
def test_a_quick_publish_wakes_its_own_session(session: Session) -> None:
    handle = session.register("a", ["q"], "", 64, b"{}", False)
    assert session.take(handle, None) is None
    drain(session)
    assert session.emit(session.root, None, "q", b"1", 1) is not None
    assert is_readable(session)
    assert drain(session).ready == [handle]
    assert not is_readable(session)
