"""Why an event was published: the chain from the root event to it, with whose turns and calls."""

from dataclasses import asdict, dataclass
from typing import Any

from loom.codec import decode
from loom.replay.records import Entry, Recorded, RunRecord, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A call, request or step of a turn; ``seconds`` it took, ``code`` of its error."""

    kind: str
    name: str
    seconds: float
    code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One event of a chain, and the turn that published it.

    ``at`` in seconds since 1970; ``waited`` and ``took`` in seconds: how long the event before it
    waited for the turn, and the turn for this event. ``agent`` None: it came from outside.
    """

    id: str
    topic: str
    sender: str
    at: float
    data: Any
    position: str | None
    agent: str | None
    attempt: int
    waited: float
    took: float
    made: tuple[Made, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The events that lead to one, the root first; ``whole``: the root is still there."""

    run_id: str
    links: tuple[Link, ...]
    whole: bool

    def shown(self) -> dict[str, Any]:
        """Return it as plain values, as ``--json`` prints it."""
        return asdict(self)


def chain_from(told: dict[str, Any]) -> Chain:
    """Return the chain that ``shown`` has told."""
    links: list[Link] = []
    for link in told["links"]:
        values: dict[str, Any] = dict(link)
        values["made"] = tuple(Made(**made) for made in link["made"])
        links.append(Link(**values))
    return Chain(run_id=told["run_id"], links=tuple(links), whole=told["whole"])


def chain_of(record: RunRecord, event_id: str) -> Chain:
    """Return the chain of an event of a run."""
    links: list[Link] = []
    event = record.events.get(event_id)
    seen: set[str] = set()
    while event is not None and event.id not in seen:
        seen.add(event.id)
        links.append(_link(event, _sender(record, event)))
        event = record.events.get(event.causation_id or "") or _caller(record, event)
    links.reverse()
    return Chain(
        run_id=record.id, links=tuple(links), whole=bool(links) and links[0].id == record.id
    )


def _sender(record: RunRecord, event: Recorded) -> Turn | None:
    if not event.sent_by:
        return None
    turns = (turn for turn in record.turns if turn.number == event.sent_by)
    return next((turn for turn in turns if turn.n < event.n), None)


def _caller(record: RunRecord, event: Recorded) -> Recorded | None:
    """Return the event whose turn made the call that published this one."""
    turn = record.turn_of_call(event.causation_id or "")
    return None if turn is None else record.events.get(turn.event_id)


def _link(event: Recorded, turn: Turn | None) -> Link:
    made: tuple[Made, ...] = ()
    if turn is not None:
        made = tuple(_made(e) for e in turn.entries if e.n < event.n and _counts(e))
    return Link(
        id=event.id,
        topic=event.topic,
        sender=event.sender,
        at=event.time,
        data=decode(event.payload) if event.is_json and event.payload else None,
        position=event.position,
        agent=None if turn is None else turn.agent,
        attempt=1 if turn is None else turn.attempt,
        waited=0.0 if turn is None else turn.waited_micros / 1e6,
        took=0.0 if turn is None else max(0.0, event.time - turn.at_ms / 1000),
        made=made,
    )


def _counts(entry: Entry) -> bool:
    return entry.kind in ("call", "request", "model", "model.stream", "step") or (
        entry.kind.startswith("memory")
    )


def _made(entry: Entry) -> Made:
    code = None if entry.error is None else entry.error.code
    return Made(kind=entry.kind, name=entry.name, seconds=entry.micros / 1e6, code=code)
