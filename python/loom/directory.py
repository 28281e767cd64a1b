"""What the directory tells about agents and capabilities. Vocabulary only.

The engine keeps the entries.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

Effect: TypeAlias = Literal["pure", "idempotent", "probeable", "unsafe"]
"""What a call changes outside: nothing; the same however often; something that can be asked for.

Anything.
"""

Health: TypeAlias = Literal["up", "restarting", "quarantined", "ejected", "probing"]
"""How it fares.

It takes work; it takes none now and its queue fills; it hears nothing. A provider that failed too
often is ejected, and probing while one call finds out whether it is well again.
"""

EFFECTS: tuple[Effect, ...] = ("pure", "idempotent", "probeable", "unsafe")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentInfo:
    """One agent, as it registered itself, and how it fares now.

    ``queued`` events wait, ``leased`` turns are under way; ``delivered`` turns have ended, of which
    ``failed`` badly; ``dropped`` events were lost; ``lagging``: it loses until it has caught up.
    """

    name: str
    filters: list[str]
    group: str
    concurrency: int
    description: str = ""
    capabilities: list[str] = field(default_factory=list[str])
    health: Health = "up"
    queued: int = 0
    leased: int = 0
    lagging: bool = False
    delivered: int = 0
    failed: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityInfo:
    """One capability of one provider, as it registered itself, and how that fares now.

    Schemas are JSON Schema (2020-12). ``queued`` calls wait, ``leased`` ones are under way.
    """

    name: str
    version: str
    effect: Effect
    timeout: float
    cost: float
    tags: list[str]
    description: str
    input: dict[str, Any]
    output: dict[str, Any]
    streams: bool = False
    needs_approval: bool = False
    provider: str = ""
    health: Health = "up"
    queued: int = 0
    leased: int = 0


T = TypeVar("T", AgentInfo, CapabilityInfo)


def entries_of(
    kind: type[T], entries: Iterable[Mapping[str, Any]], *, leave_out: Callable[[str], object]
) -> list[T]:
    """Return entries of the directory as ``kind``.

    Members of a newer peer are passed over. An entry that is none is left out, and ``leave_out`` is
    told which and why: what one session says of itself keeps nobody from the others.
    """
    found: list[T] = []
    for entry in entries:
        try:
            found.append(msgspec.convert(entry, kind, strict=False))
        except msgspec.ValidationError as error:
            leave_out(f"{entry.get('name')!r} in the directory is left out: {error}")
    return found
