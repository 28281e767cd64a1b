"""Whom a command asks: a log in a directory, or a node.

Every command has its option, also `loom --help`: what only asking needs is imported then.
"""

import shlex
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from loom.cli.place import data_directory
from loom.errors import InvalidParams
from loom.limits import CONTROL_ROWS

if TYPE_CHECKING:
    from loom.context import Context
    from loom.node.place import Place

OPERATOR = "default"  # the namespace in which a node is administered
_PATIENCE = 20  # looks for the control of a namespace that has just been opened
_COPYING = 600.0  # seconds that a copy of a log may take, or all of it on the wire
_PAUSE = 0.05  # seconds between two of them


def _url(help_: str) -> Any:
    return typer.Option("--url", metavar="URL", help=help_, show_default=False)


UrlOption: TypeAlias = Annotated[
    str | None,
    _url(
        "Ask this node instead of a directory; `local`: the one that runs for you. "
        "Default: LOOM_URL, else --data."
    ),
]
NodeOption: TypeAlias = Annotated[
    str | None,
    _url("The node; `local`: the one that runs for you. Default: LOOM_URL, else that one."),
]
TokensOption: TypeAlias = Annotated[
    str | None,
    _url(
        "The node; `local`: the one that runs for you. Default: LOOM_URL, else that one; where "
        "none runs, the directory of `loom up` without --data."
    ),
]
ListOption: TypeAlias = Annotated[
    str | None,
    _url(
        "List what is at this node, and not in an app; `local`: the one that runs for you. "
        "Default: LOOM_URL where no TARGET is given."
    ),
]
RunOption: TypeAlias = Annotated[
    str | None,
    _url(
        "Run it at this node; `local`: the one that runs for you. "
        "Default: LOOM_URL, else in this process alone."
    ),
]
InOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="The namespace to work in. Default: that of the token.",
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
        from loom.config import load

        if self.url is not None and self.data is not None:
            raise InvalidParams(
                "--url and --data name two places", field="url", hint="leave one of them out"
            )
        return self.url or (None if self.data is not None else load().url)

    @property
    def running(self) -> str | None:
        """The url of the node that runs for this user; None: none does."""
        from loom.address import find_node
        from loom.config import load

        node = find_node(load().runtime)
        return None if node is None or not node.urls else node.urls[0]

    @property
    def anywhere(self) -> "Where":
        """This, or the node that runs for this user where none was named."""
        from loom.address import LOCAL

        return replace(self, url=self.node or LOCAL)

    @property
    def operator(self) -> "Where":
        """The same node in the namespace that was named, by default the operator's."""
        named = self.namespace in {None, "*"}
        return replace(self.anywhere, namespace=OPERATOR if named else self.namespace)

    @property
    def again(self) -> str:
        """The options that say it, for the next command."""
        given = (("--data", self.data), ("--namespace", self.namespace), ("--url", self.url))
        return " ".join(f"{name} {shlex.quote(value)}" for name, value in given if value)

    @property
    def place(self) -> "Place":
        """The log to look into."""
        from loom.node.place import find_log

        return find_log(data_directory(self.data, or_node=True), self.namespace)

    def ask(self, name: str, /, **args: Any) -> Any:
        """Return what the node's ``loom.node.{name}`` says."""
        import asyncio

        return asyncio.run(at_node(self, lambda ctx: control(ctx, name, args)))

    def collect(self, name: str, /, **args: Any) -> list[Any]:
        """Return what the node's ``loom.node.{name}`` gives; say so where it shows no more."""
        import asyncio

        found: list[Any] = asyncio.run(at_node(self, lambda ctx: collected(ctx, name, args)))
        limit = args.get("limit", CONTROL_ROWS)
        if len(found) == CONTROL_ROWS and (limit == 0 or limit > CONTROL_ROWS):
            sys.stderr.write(
                f"… the newest {CONTROL_ROWS}: a node shows no more; beside its log, --data does\n"
            )
        return found


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
    async with streamed(ctx, name, args) as items:
        return [item async for item in items]


@asynccontextmanager
async def streamed(
    ctx: "Context[Any]", name: str, args: Mapping[str, Any]
) -> "AsyncGenerator[AsyncIterator[Any]]":
    """Give the chunks of what the node itself offers, as they come."""
    await _offered(ctx, name)
    given = _given(args)
    async with ctx.stream(f"loom.node.{name}", args=given, timeout=_COPYING) as items:
        yield items


async def _offered(ctx: "Context[Any]", name: str) -> None:
    """Wait a moment for what a node offers in a namespace: it does so once somebody is there."""
    import asyncio

    for _ in range(_PATIENCE):
        if await ctx.capabilities(f"loom.node.{name}"):
            return
        await asyncio.sleep(_PAUSE)


def _given(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if value is not None}
