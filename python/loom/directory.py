"""What the directory tells about agents and capabilities. Vocabulary only.

The engine keeps the entries.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

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
    """One agent, as it registered itself."""

    name: str
    filters: list[str]
    group: str
    concurrency: int
    description: str = ""
    capabilities: list[str] = field(default_factory=list[str])
    health: Health = "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityInfo:
    """One capability of one provider, as it registered itself.

    Schemas are JSON Schema (2020-12).
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
