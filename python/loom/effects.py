"""What became of each call that changes something outside, and the last word on what is unknown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from loom.checks import check_text
from loom.codec import decode, encode
from loom.directory import Effect
from loom.errors import InvalidParams, NotFound, NotSupported

if TYPE_CHECKING:
    from loom.link import Ledger

EffectState: TypeAlias = Literal[
    "planned", "dispatched", "confirmed", "failed", "unknown", "reconciled"
]
"""How an effect stands.

It will be given to a provider; a provider has it; it was done; it was not done, or its provider
raised; nobody knows; it was unknown and is known to be done.
"""

_FIELDS: Final = (  # as the engine calls them, where it does so too
    *("id", "state", "capability", "version", "effect", "caller", "attempts", "position"),
    *("key", "provider", "run_id", "thread_id", "event_id", "by", "note", "code"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectInfo:
    """One change outside, as far as it is known. Times in seconds since 1970.

    ``effect`` is the class of its capability, ``attempts`` how often a provider was given it,
    ``provider`` who had it last. ``intended`` is when it was written down, ``since`` when it came
    to stand as it does, ``by`` who settled it ("operator" is a person), and ``note`` what was said
    then. ``code`` is the error that is its outcome; ``result`` is there where one effect is shown.
    """

    id: str
    state: EffectState
    capability: str
    version: str
    effect: Effect
    caller: str
    attempts: int
    position: str
    intended: float
    since: float
    key: str | None = None
    provider: str | None = None
    run_id: str | None = None
    thread_id: str | None = None
    event_id: str | None = None
    by: str | None = None
    note: str | None = None
    code: str | None = None
    result: Any = None


class Effects:
    """The effects of one running app's namespace: ``app.effects.list(unknown=True)``.

    There are those that are under way, those that nobody knows of, and the outcomes that are kept
    for their keys.
    """

    def __init__(self) -> None:
        self._ledger: Ledger | None = None

    def list(self, *, unknown: bool = False) -> Sequence[EffectInfo]:
        """Return all effects in the order of their ids; ``unknown``: those that nobody knows of.

        Raises:
            NotSupported: the app is not running.
        """
        found: Sequence[EffectInfo] = ()
        after, more = None, True
        while more:
            page, more = self._running().page(unknown=unknown, after=after)
            found = (*found, *(_told(shown) for shown in page))
            after = found[-1].id if page else None
            more = more and after is not None
        return found

    def get(self, effect: str) -> EffectInfo:
        """Return what is known of one effect, with its result.

        Raises:
            InvalidParams: ``effect`` is not the id of an effect.
            NotFound: it is not there: there never was one, or its day is over.
            NotSupported: the app is not running.
        """
        found = self._running().find(check_text(effect, "effect"))
        if found is None:
            raise NotFound(
                f"there is no effect {effect} that is kept",
                field="effect",
                hint="app.effects.list() has those there are",
            )
        shown, result = found
        return _told(shown, result)

    async def resolve(
        self, effect: str, *, done: bool, result: object = None, note: str = ""
    ) -> EffectInfo:
        """Say what became of an unknown effect, after you looked; return how it stands then.

        ``done``: calls with its key are given ``result``, which is what the capability would have
        returned. Not done: the next call with its key does it. It is on the disk when this returns.

        Raises:
            InvalidParams: ``effect`` is not an id, the note is too long, or there is a result of
                what was not done.
            NotFound: it is not there.
            Conflict: it is not unknown.
            NotSupported: the app is not running.
        """
        if not isinstance(done, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidParams(f"done is {done!r}", field="done", hint="give True or False")
        if not done and result is not None:
            raise InvalidParams(
                "what was not done has no result", field="result", hint="leave it out"
            )
        ledger = self._running()
        payload = encode(result, "result") if done else None
        await ledger.settle(check_text(effect, "effect"), payload, check_text(note, "note"))
        return self.get(effect)

    def bind(self, ledger: "Ledger | None") -> None:
        """Read the effects of a running engine from now on; None: of none."""
        self._ledger = ledger

    def _running(self) -> "Ledger":
        if self._ledger is None:
            raise NotSupported(
                "the app of these effects is not running",
                field="app",
                hint="look while it runs; `loom effects` looks into the log of one that is stopped",
            )
        return self._ledger


def _told(shown: Mapping[str, Any], result: bytes | None = None) -> EffectInfo:
    known = {name: shown[name] for name in _FIELDS if name in shown}
    return EffectInfo(
        **known,
        intended=shown["intended_ms"] / 1000,
        since=shown["since_ms"] / 1000,
        result=None if result is None else _value(result),
    )


def _value(result: bytes) -> Any:
    try:
        return decode(result)
    except InvalidParams:  # bytes are kept as they are
        return result
