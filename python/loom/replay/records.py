"""What a log has of one run: its events, its turns, and what each turn has asked for and got."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from loom.codec import decode
from loom.envelope import Position
from loom.errors import LoomError
from loom.link import Row, digest, error_from_detail


@dataclass(slots=True, kw_only=True, eq=False)
class Recorded:
    """An event as the log has it: an Envelope."""

    id: str
    topic: str
    sender: str
    namespace: str
    thread_id: str
    run_id: str
    correlation_id: str | None
    causation_id: str | None
    ttl_ms: int | None
    key: str | None
    time: float
    hop: int
    qos: int
    content_type: str
    is_json: bool
    headers: dict[str, str]
    labels: list[str]
    causes: list[str]
    traceparent: str | None
    payload: bytes
    n: int  # the number of its position
    sent_by: int = 0  # the recorded turn that sent it; 0: none, or not known
    matched: int | None = None
    wants_reply: bool = False
    position: Position | None = None
    attempt: int = 1
    lease: int = 0
    turn: int = 0
    reply_to: str | None = None
    deadline: float | None = None
    streamed: bool = False
    credit: int = 0
    effect_id: str | None = None
    asked: str | None = None  # the ack level that a replayed handler asks for

    @property
    def is_durable(self) -> bool:
        """Whether the log has it as an event of its own."""
        return self.position is not None

    def settle(self, how: int, millis: int | None, reason: str | None, /) -> None:
        """Nothing: how it was acknowledged then is in the log."""

    @property
    def json(self) -> bytes | None:
        """The payload if it is JSON."""
        return self.payload if self.is_json else None

    @property
    def level(self) -> str:
        """What its publisher was promised."""
        if self.position is None:
            return "accepted"
        return self.asked or "disk"

    @property
    def is_reply(self) -> bool:
        """Whether it answers a request."""
        return self.topic == f"thread.{self.thread_id}.reply" and self.causation_id is not None


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One thing that a turn asked for, and what it got.

    ``kind`` is emit, request, call, reply or that of a step; ``done`` the number of the position
    at which it ended, None where it did not; ``ended_by`` says that the turn itself cancelled it.
    """

    kind: str
    name: str
    asked: bytes  # hash of what it was asked with
    n: int
    at_ms: int
    done: int | None = None
    payload: bytes = b""
    result: bytes = b""
    error: LoomError | None = None
    micros: int = 0
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    event: Recorded | None = None
    answers: list[Recorded] = field(default_factory=list[Recorded])
    chunks: list[bytes] = field(default_factory=list[bytes])
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    used: bool = False

    @property
    def is_cancelled(self) -> bool:
        """Whether it ended because nobody waited for it any more."""
        return self.error is not None and self.error.code == "CANCELLED"


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """One turn: whose, of which event, and all that it did. ``code`` None: it has not ended."""

    number: int
    epoch: int
    n: int
    agent: str
    version: str
    code_hash: bytes
    event_id: str
    attempt: int
    at_ms: int
    waited_micros: int
    entries: list[Entry] = field(default_factory=list[Entry])
    lines: list[Recorded] = field(default_factory=list[Recorded])  # of log, and error events
    state: bytes | None = None  # as it left it, where it changed it
    code: int | None = None
    message: str = ""
    ended_n: int = 0
    ended_ms: int = 0


class RunRecord:
    """All records of one run, sorted into turns."""

    def __init__(self, run: str, rows: Iterable[Row]) -> None:
        self.id: str = run
        self.events: dict[str, Recorded] = {}
        self.turns: list[Turn] = []
        self.rows: list[Row] = []
        self.missing: int = 0
        self.states: list[tuple[int, str, str, bytes]] = []  # (n, agent, key, JSON), of any run
        self._turns: dict[tuple[int, int], Turn] = {}
        self._calls: dict[str, Entry] = {}
        self._requests: dict[str, Entry] = {}
        self._answers: dict[str, list[Recorded]] = defaultdict(list)
        self._of_event: dict[tuple[str, str], Turn] = {}
        take = {
            "event": self._event,
            "sent": self._event,
            "turn": self._turn,
            "turn_end": self._turn_end,
            "ended": self._ended,
            "step": self._step,
            "intent": self._intent,
            "outcome": self._outcome,
            "state": self._state,
            "gap": self._gap,
        }
        for row in rows:
            self.rows.append(row)
            if row[0] in take:
                take[row[0]](row)

    @property
    def root(self) -> Recorded | None:
        """The event that began it, unless it is not kept any more."""
        return self.events.get(self.id)

    @property
    def calls(self) -> int:
        """How many calls it made."""
        return len(self._calls)

    @property
    def lanes(self) -> set[tuple[str, str]]:
        """Agents and keys of the states that its turns could change."""
        found = ((turn, self.events.get(turn.event_id)) for turn in self.turns)
        return {(t.agent, e.key or e.thread_id) for t, e in found if e is not None}

    def turn_of_call(self, call: str) -> Turn | None:
        """Return the turn that made a call."""
        entry = self._calls.get(call)
        owners = (turn for turn in self.turns if entry is not None and entry in turn.entries)
        return next(owners, None)

    def _event(self, row: Row) -> None:
        _, epoch, n, told, body = row
        head = dict(told)
        position: str | None = head.pop("position")
        turn: int = head.pop("turn", 0)
        asks: bool = head.pop("asks")
        time: float = head.pop("time_ms") / 1000
        matched: int | None = head.pop("matched", None)
        event = Recorded(
            **head,
            payload=body,
            n=n,
            time=time,
            sent_by=turn,
            matched=matched,
            wants_reply=asks,
            position=None if position is None else Position(position),
        )
        self.events.setdefault(event.id, event)
        by = self._turns.get((epoch, turn)) if turn else self._sender_of(event)
        if by is not None:
            event.sent_by = by.number
        if event.topic.startswith("loom."):
            if by is not None:
                by.lines.append(event)
            return
        if event.is_reply and event.causation_id in self._requests:
            self._requests[event.causation_id].answers.append(event)
        if by is None:
            return
        reply = event.is_reply and event.causation_id == by.event_id
        entry = Entry(
            kind="reply" if reply else "request" if asks else "emit",
            name="" if reply else event.topic,
            asked=digest(body),
            n=n,
            at_ms=round(time * 1000),
            done=None if asks else n,
            payload=body,
            event=event,
        )
        by.entries.append(entry)
        if asks:
            self._requests[event.id] = entry

    def _sender_of(self, event: Recorded) -> Turn | None:
        """Return the turn that sent a durable event, which does not name it."""
        agent = event.sender.removeprefix(f"{event.namespace}/")
        return self._of_event.get((event.causation_id or "", agent))

    def _turn(self, row: Row) -> None:
        _, epoch, n, head, _ = row
        turn = Turn(
            number=head["turn"],
            epoch=epoch,
            n=n,
            agent=head["agent"],
            version=head["version"],
            code_hash=head["code_hash"],
            event_id=head["event_id"],
            attempt=head["attempt"],
            at_ms=head["at_ms"],
            waited_micros=head["waited_micros"],
        )
        self.turns.append(turn)
        self._turns[epoch, turn.number] = turn
        self._of_event[turn.event_id, turn.agent] = turn

    def _turn_end(self, row: Row) -> None:
        _, epoch, n, head, _ = row
        turn = self._turns.get((epoch, head["turn"]))
        if turn is not None:
            turn.code, turn.message = head["code"], head["message"]
            turn.ended_n, turn.ended_ms = n, head["at_ms"]

    def _ended(self, row: Row) -> None:
        _, _, n, head, _ = row
        entry = self._requests.get(head["event_id"])
        if entry is not None:
            entry.done = n
            detail = head["detail"].encode()
            entry.summary = decode(detail) if detail else {}
            entry.micros = max(0, head["at_ms"] - entry.at_ms) * 1000
            if head["code"]:
                entry.error = error_from_detail(head["code"], detail)

    def _step(self, row: Row) -> None:
        _, epoch, n, head, body = row
        turn = self._turns.get((epoch, head["turn"]))
        if turn is None:
            return
        if head["kind"] == "chunk":
            entry = self._calls.get(head["name"])
            if entry is not None:
                entry.chunks.append(body)
            return
        entry = Entry(
            kind=head["kind"].removeprefix("refused "),
            name=head["name"],
            asked=head["args_hash"],
            n=n,
            at_ms=head["at_ms"],
            done=n,
            result=body,
            micros=head["micros"],
            facts=decode(head["facts"].encode()) if head["facts"] else {},
            error=error_from_detail(head["code"], body) if head["code"] else None,
        )
        turn.entries.append(entry)

    def _intent(self, row: Row) -> None:
        _, epoch, n, head, body = row
        entry = Entry(
            kind="call",
            name=head["capability"],
            asked=digest(body),
            n=n,
            at_ms=head["at_ms"],
            payload=body,
        )
        self._calls[head["call_id"]] = entry
        turn = self._turns.get((epoch, head["turn"]))
        if turn is not None:
            turn.entries.append(entry)

    def _outcome(self, row: Row) -> None:
        _, _, n, head, body = row
        entry = self._calls.get(head["call_id"] or head["effect_id"])
        if entry is not None:
            entry.done, entry.result, entry.micros = n, body, head["micros"]
            if head["code"]:
                entry.error = error_from_detail(head["code"], head["detail"].encode())

    def _state(self, row: Row) -> None:
        _, epoch, n, head, body = row
        self.states.append((n, head["agent"], head["key"], body))
        turn = self._turns.get((epoch, head["turn"]))
        if turn is not None:
            turn.state = body

    def _gap(self, row: Row) -> None:
        missing: int = row[3]["missing"]
        self.missing += missing
