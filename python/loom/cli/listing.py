"""``loom list``: what an app consists of, read from its declarations. Nothing of it is run."""

from typing import Any, Literal, cast

from loom.agent import AgentSpec
from loom.app import App
from loom.capabilities import Capability, MethodCapability
from loom.cli.asked import Where
from loom.cli.show import print_json, print_table
from loom.cli.target import load_target


def list_target(
    kind: Literal["agents", "topics", "capabilities"], target: str | None, *, as_json: bool
) -> None:
    """Print one kind of thing that the app declares."""
    app, _ = load_target(target, or_node=True)
    columns, rows = {
        "agents": _agents,
        "topics": _topics,
        "capabilities": _capabilities,
    }[kind](app)
    if as_json:
        for row in rows:
            print_json(dict(zip(columns, row, strict=True)))
    elif rows:
        print_table(columns, [[_cell(value) for value in row] for row in rows])
    else:
        print_table([f"{app.name} has no {kind}"], [])


def list_node(
    kind: Literal["agents", "topics", "capabilities"], where: Where, *, as_json: bool
) -> None:
    """Print one kind of thing that is at a node now."""
    found: list[dict[str, Any]] = where.ask("list", kind=kind)
    if as_json:
        for one in found:
            print_json(one)
        return
    columns = _COLUMNS[kind]
    rows = [[_cell(one.get(name, "")) for name in columns] for one in found]
    print_table(columns if rows else [f"there are no {kind}"], rows)


def list_sessions(where: Where, *, as_json: bool) -> None:
    """Print who is attached to a node."""
    found: list[dict[str, Any]] = where.ask("sessions")
    if as_json:
        for one in found:
            print_json(one)
        return
    columns = ["namespace", "name", "agents", "capabilities", "streams", "queued", "leased"]
    for one in found:
        own = [name for name in one["capabilities"] if not name.startswith("loom.")]
        one["capabilities"] = own  # those of the node itself are always the same
    print_table(columns, [[_cell(one[name]) for name in columns] for one in found])


_COLUMNS = {
    "agents": ["name", "filters", "group", "health", "queued", "leased", "description"],
    "topics": ["topic", "agents"],
    "capabilities": ["name", "version", "effect", "timeout", "provider", "health", "description"],
}


def _agents(app: App) -> tuple[list[str], list[list[Any]]]:
    rows = [
        [spec.name, list(spec.filters), spec.group, spec.concurrency, spec.description]
        for spec in app.agents
    ]
    return ["name", "topics", "group", "concurrency", "description"], rows


def _topics(app: App) -> tuple[list[str], list[list[Any]]]:
    heard: dict[str, list[str]] = {}
    for spec in app.agents:
        for pattern in spec.filters:
            heard.setdefault(pattern, []).append(spec.name)
    return ["topic", "agents"], [[pattern, heard[pattern]] for pattern in sorted(heard)]


def _capabilities(app: App) -> tuple[list[str], list[list[Any]]]:
    columns = ["name", "version", "effect", "timeout", "provider", "description"]
    offered = [(app.name, capability) for capability in app.capabilities]
    for spec in app.agents:
        offered.extend((spec.name, capability) for capability in _methods(spec))
    rows = [
        [
            made.name,
            made.terms.version,
            made.terms.effect,
            made.terms.timeout,
            provider,
            made.description,
        ]
        for provider, made in offered
    ]
    return columns, rows


def _methods(spec: AgentSpec) -> list[Capability[..., Any]]:
    declared = [getattr(spec.make, name, None) for name in spec.methods]
    return [
        made.__get__(None) if isinstance(made, MethodCapability) else made
        for made in declared
        if made is not None
    ]


def _cell(value: Any) -> str:
    return ", ".join(cast("list[str]", value)) if isinstance(value, list) else str(value)
