"""How ``--help`` looks: an example on a line of its own, commands in the order of their use."""

from typing import Any

from typer.core import TyperGroup

_AS_IT_IS = "\b"  # a paragraph that begins with this is not wrapped


class InOrder(TyperGroup):
    """The root of the command line: its commands in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, those first that a person needs first."""
        there = super().list_commands(ctx)
        return sorted(there, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


_ORDER = (
    *("run", "up", "list"),
    *("emit", "call", "watch"),
    *("runs", "logs", "why", "replay", "sql"),
    *("effects", "dlq"),
    *("token", "sessions", "stats", "drain"),
    *("backup", "restore", "snapshot"),
)


def examples(*commands: str) -> str:
    """Return the end of a command's help: each of ``commands`` as it can be copied."""
    return "\n".join((_AS_IT_IS, "Examples:", *(f"  {command}" for command in commands)))
