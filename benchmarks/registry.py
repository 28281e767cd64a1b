"""All cases by name. A case is loaded alone, so that one side's imports do not weigh on another."""

from collections.abc import Iterable
from importlib import import_module

from benchmarks.model import Case

CASES = (
    "emit",
    "typed",
    "suspending",
    "fanout",
    "slow",
    "overload",
    "request",
    "concurrent",
    "idle",
    "durable_one",
    "durable",
    "durable_many",
    "durable_os",
    "durable_realtime",
    "recording",
    "view",
    "log",
    "log_tail",
    "link_publish",
    "link_fanout",
    "link_request",
    "link_concurrent",
    "link_js",
    "link_realtime",
    "link_idle",
    "core",
    "start",
    "help",
)


def load(name: str) -> Case:
    """Return the case of that name."""
    case = import_module(f"benchmarks.cases.{name}").CASE
    assert isinstance(case, Case)
    assert case.name == name
    return case


def load_all(names: Iterable[str] = CASES) -> list[Case]:
    """Return the named cases, in the order of the registry."""
    wanted = set(names)
    return [load(name) for name in CASES if name in wanted]
