"""Whom a command asks: a log in a directory, or a node."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from loom.address import LOCAL, find_node
from loom.cli.place import data_directory
from loom.config import load
from loom.errors import InvalidParams
from loom.node.place import Place, find_log

if TYPE_CHECKING:
    from loom.context import Context

OPERATOR = "default"  # the namespace in which a node is administered
_PATIENCE = 20  # looks for the control of a namespace that has just been opened
_COPYING = 600.0  # seconds that a copy of a log may take
_PAUSE = 0.05  # seconds between two of them

UrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Ask this node; `local`: the one that runs for you. Default: LOOM_URL, else the log.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Where:
    """Where a command looks, as it was told."""

    data: str | None
    namespace: str | None
    url: str | None

    @property
    def node(self) -> str | None:
        """The url of the node to ask; None: a log is looked into.

        Raises:
            InvalidParams: both were named.
        """
        if self.url is not None and self.data is not None:
            raise InvalidParams(
                "--url and --data name two places", field="url", hint="leave one of them out"
            )
        return self.url or (None if self.data is not None else load().url)

    @property
    def running(self) -> str | None:
        """The url of the node that runs for this user; None: none does."""
        node = find_node(load().runtime)
        return None if node is None or not node.urls else node.urls[0]

    @property
    def anywhere(self) -> "Where":
        """This, or the node that runs for this user where none was named."""
        return replace(self, url=self.node or LOCAL)

    @property
    def operator(self) -> "Where":
        """The same node in the namespace that was named, by default the operator's."""
        named = self.namespace in {None, "*"}
        return replace(self.anywhere, namespace=OPERATOR if named else self.namespace)

    @property
    def place(self) -> Place:
        """The log to look into."""
        return find_log(data_directory(self.data), self.namespace)

    def ask(self, name: str, /, **args: Any) -> Any:
        """Return what the node's ``loom.node.{name}`` says."""
        return asyncio.run(at_node(self, lambda ctx: control(ctx, name, args)))

    def collect(self, name: str, /, **args: Any) -> list[Any]:
        """Return all that the node's ``loom.node.{name}`` gives, one after the other."""
        return asyncio.run(at_node(self, lambda ctx: collected(ctx, name, args)))


async def at_node(where: Where, do: "Callable[[Context[Any]], Any]") -> Any:
    """Do something with a Context at the node."""
    from loom.app import connect

    async with connect(where.node, name="loom-cli", namespace=where.namespace) as ctx:
        return await do(ctx)


async def control(ctx: "Context[Any]", name: str, args: Mapping[str, Any]) -> Any:
    """Call what the node itself offers."""
    await _offered(ctx, name)
    timeout = _COPYING if name == "backup" else None
    return await ctx.tool(f"loom.node.{name}", args=_given(args), timeout=timeout)


async def collected(ctx: "Context[Any]", name: str, args: Mapping[str, Any]) -> list[Any]:
    """Return all chunks of what the node itself offers."""
    await _offered(ctx, name)
    async with ctx.stream(f"loom.node.{name}", args=_given(args)) as items:
        return [item async for item in items]


async def _offered(ctx: "Context[Any]", name: str) -> None:
    """Wait a moment for what a node offers in a namespace: it does so once somebody is there."""
    for _ in range(_PATIENCE):
        if await ctx.capabilities(f"loom.node.{name}"):
            return
        await asyncio.sleep(_PAUSE)


def _given(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if value is not None}
