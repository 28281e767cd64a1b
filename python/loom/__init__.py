"""Loom: long-lived systems of agents that react to events.

The names below are loaded when they are first used, so that ``import loom`` and the command line
stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loom.agent import Agent, on
    from loom.app import App, connect
    from loom.capabilities import Bound, Capability, Done, NotDone, capability
    from loom.context import Context
    from loom.directory import AgentInfo, CapabilityInfo
    from loom.effects import EffectInfo
    from loom.envelope import Event, Position, Receipt, Replies
    from loom.errors import LoomError
    from loom.middleware import Call, Item, Middleware, Next
    from loom.protocols import Answer, Memory, Model
    from loom.replay import Log, open_log

__version__ = "0.1.0a1"

__all__ = [
    "Agent",
    "AgentInfo",
    "Answer",
    "App",
    "Bound",
    "Call",
    "Capability",
    "CapabilityInfo",
    "Context",
    "Done",
    "EffectInfo",
    "Event",
    "Item",
    "Log",
    "LoomError",
    "Memory",
    "Middleware",
    "Model",
    "Next",
    "NotDone",
    "Position",
    "Receipt",
    "Replies",
    "capability",
    "connect",
    "on",
    "open_log",
]

_HOMES = {
    "Agent": "agent",
    "AgentInfo": "directory",
    "Answer": "protocols",
    "App": "app",
    "Bound": "capabilities",
    "Call": "middleware",
    "Capability": "capabilities",
    "CapabilityInfo": "directory",
    "Context": "context",
    "Done": "capabilities",
    "EffectInfo": "effects",
    "Event": "envelope",
    "Item": "middleware",
    "Log": "replay",
    "LoomError": "errors",
    "Memory": "protocols",
    "Middleware": "middleware",
    "Model": "protocols",
    "Next": "middleware",
    "NotDone": "capabilities",
    "Position": "envelope",
    "Receipt": "envelope",
    "Replies": "envelope",
    "capability": "capabilities",
    "connect": "app",
    "on": "agent",
    "open_log": "replay",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'loom' has no attribute {name!r}")
    value = getattr(import_module(f"loom.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
