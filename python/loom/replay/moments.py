"""What happened, moment by moment: one for each event, turn, call and step of a log."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, cast

from loom.codec import decode
from loom.errors import CLASSES
from loom.link import Row

What: TypeAlias = Literal["event", "turn", "turn_end", "call", "outcome", "step", "state", "gap"]

_CALM = frozenset({"now", "monotonic", "chunk"})  # steps that a person need not read


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One thing that happened.

    ``at`` in seconds since 1970; ``who`` is the agent or sender, ``name`` the topic, capability or
    name of a step; ``code`` an error's, None: none; ``seconds`` how long it took, or waited;
    ``hop`` how many events stand between the root and what it belongs to.
    """

    at: float
    n: int
    what: What
    who: str
    name: str
    run_id: str | None = None
    id: str | None = None
    hop: int = 0
    code: str | None = None
    seconds: float | None = None
    data: Any = None
    note: str = ""

    def shown(self) -> dict[str, Any]:
        """Return it as plain values, as ``--json`` prints it."""
        return asdict(self)


def code_name(number: int) -> str | None:
    """Return the name of an error's number; None for 0."""
    return CLASSES[number].CODE if number in CLASSES else None


def moments(rows: Iterable[Row]) -> Iterator[Moment]:
    """Return what records tell, in their order."""
    teller = _Teller()
    for row in rows:
        tell = teller.kinds.get(row[0])
        moment = None if tell is None else tell(row)
        if moment is not None:
            yield moment


class _Teller:
    """Knows what later records refer to."""

    def __init__(self) -> None:
        self._turns: dict[tuple[int, int], tuple[str, str, int]] = {}  # agent, run, hop
        self._hops: dict[str, int] = {}
        self._calls: dict[str, tuple[str, str, int]] = {}  # name, run, hop
        self.kinds = {
            "event": self._event,
            "sent": self._event,
            "turn": self._turn,
            "turn_end": self._turn_end,
            "intent": self._intent,
            "outcome": self._outcome,
            "step": self._step,
            "gap": self._gap,
        }

    def _event(self, row: Row) -> Moment:
        _, _, n, head, body = row
        hop: int = head["hop"]
        self._hops[head["id"]] = hop
        return Moment(
            at=head["time_ms"] / 1000,
            n=n,
            what="event",
            who=head["sender"].removeprefix(f"{head['namespace']}/"),
            name=head["topic"],
            run_id=head["run_id"],
            id=head["id"],
            hop=hop,
            data=_data(body, is_json=head["is_json"]),
            note="asks" if head["asks"] else "",
        )

    def _turn(self, row: Row) -> Moment:
        _, epoch, n, head, _ = row
        hop = self._hops.get(head["event_id"], 0)
        self._turns[epoch, head["turn"]] = head["agent"], head["run_id"], hop
        again = "" if head["attempt"] == 1 else f"attempt {head['attempt']}"
        return Moment(
            at=head["at_ms"] / 1000,
            n=n,
            what="turn",
            who=head["agent"],
            name=head["version"],
            run_id=head["run_id"],
            id=head["event_id"],
            hop=hop,
            seconds=head["waited_micros"] / 1e6,
            note=again,
        )

    def _turn_end(self, row: Row) -> Moment | None:
        _, epoch, n, head, _ = row
        known = self._turns.get((epoch, head["turn"]))
        if known is None:
            return None
        agent, run, hop = known
        return Moment(
            at=head["at_ms"] / 1000,
            n=n,
            what="turn_end",
            who=agent,
            name="",
            run_id=run,
            hop=hop,
            code=code_name(head["code"]),
            note=head["message"],
        )

    def _intent(self, row: Row) -> Moment:
        _, epoch, n, head, body = row
        known = self._turns.get((epoch, head["turn"]))
        agent: str = head["caller"].partition("/")[2] if known is None else known[0]
        hop = 0 if known is None else known[2]
        self._calls[head["call_id"]] = head["capability"], head["run_id"], hop
        return Moment(
            at=head["at_ms"] / 1000,
            n=n,
            what="call",
            who=agent,
            name=head["capability"],
            run_id=head["run_id"],
            id=head["call_id"],
            hop=hop,
            data=_data(body, is_json=True),
        )

    def _outcome(self, row: Row) -> Moment | None:
        _, _, n, head, body = row
        call = head["call_id"] or head["effect_id"]
        known = self._calls.get(call)
        if known is None:
            return None
        name, run, hop = known
        return Moment(
            at=head["at_ms"] / 1000,
            n=n,
            what="outcome",
            who="",
            name=name,
            run_id=run,
            id=call,
            hop=hop,
            code=code_name(head["code"]),
            seconds=head["micros"] / 1e6,
            data=_data(body, is_json=True) if not head["code"] else None,
            note=_message(head["detail"]),
        )

    def _step(self, row: Row) -> Moment | None:
        _, epoch, n, head, body = row
        known = self._turns.get((epoch, head["turn"]))
        if known is None or head["kind"] in _CALM:
            return None
        agent, run, hop = known
        failed = head["code"] != 0
        return Moment(
            at=head["at_ms"] / 1000,
            n=n,
            what="step",
            who=agent,
            name=f"{head['kind']} {head['name']}".rstrip(),
            run_id=run,
            hop=hop,
            code=code_name(head["code"]),
            seconds=head["micros"] / 1e6,
            data=None if failed else _data(body, is_json=True),
            note=_message(body.decode(errors="replace")) if failed else "",
        )

    def _gap(self, row: Row) -> Moment:
        _, _, n, head, _ = row
        missing = head["missing"]
        return Moment(
            at=0.0,
            n=n,
            what="gap",
            who="",
            name=head["why"],
            run_id=head["run_id"],
            note=f"{missing} records are missing here: the log was behind",
        )


def _data(body: bytes, *, is_json: bool) -> Any:
    if not body:
        return None
    if is_json:
        try:
            return decode(body)
        except ValueError:
            return body.decode(errors="replace")
    return f"{len(body)} bytes"


def _message(detail: str) -> str:
    if not detail:
        return ""
    told = _data(detail.encode(), is_json=True)
    if not isinstance(told, dict):
        return detail
    return str(cast("dict[str, Any]", told).get("message", ""))
