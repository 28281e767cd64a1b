"""How ``--help`` looks, and what all commands have that reach a node.

An example stands on a line of its own, commands in the order of their use.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

_AS_IT_IS = "\b"  # a paragraph that begins with this is not wrapped


class AsGiven(TyperCommand):
    """A command whose options are texts and flags: it gets them as they were given.

    Typer converts with Pydantic also what needs no conversion, and 8 MiB of it would stay in memory
    as long as a node.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options, with that for help."""
        return [_as_given(one) for one in super().get_params(ctx)]


class InOrder(TyperGroup):
    """The root of the command line: its commands in the order of their use.

    Each that has ``--url`` has the files that reaching a node takes, too.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        files = typer.main.get_command(_reaching).params
        _give(self, files)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its own options; the flags are taken as they are given, see ``AsGiven``."""
        own: list[Any] = super().get_params(ctx)
        return [_as_given(one) if one.is_flag else one for one in own]

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, those first that a person needs first."""
        there = super().list_commands(ctx)
        return sorted(there, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


def _as_given(option: Any) -> Any:
    """Return the option without its conversion: else ``process_value`` does the same."""

    def process_value(ctx: Any, value: Any) -> Any:
        return value if option.callback is None else option.callback(ctx, option, value)

    option.process_value = process_value
    return option


def _give(group: Any, files: list[Any]) -> None:
    for command in group.commands.values():
        if hasattr(command, "commands"):
            _give(command, files)
        if any(param.name == "url" for param in command.params):
            command.params += files


def _take(param: typer.CallbackParam, value: str | None) -> None:
    """Put what was given where all that reaches a node looks for it."""
    if value is None:
        return
    if param.name == "token_file":
        from loom.address import read_token

        os.environ["LOOM_TOKEN"] = read_token(Path(value))
    else:
        os.environ[f"LOOM_{param.name}".upper()] = value


def _file(name: str, help_: str) -> Any:
    return typer.Option(
        f"--{name}",
        metavar="FILE",
        help=help_,
        callback=_take,
        expose_value=False,
        show_default=False,
    )


_reaching: typer.Typer = typer.Typer(add_completion=False)


@_reaching.command()
def _files(
    *,
    token_file: Annotated[
        str | None, _file("token-file", "The token for the node. Default: LOOM_TOKEN.")
    ] = None,
    ca: Annotated[
        str | None,
        _file("ca", "Who vouches for a node with TLS, PEM. Default: LOOM_CA, else the system."),
    ] = None,
    cert: Annotated[
        str | None,
        _file("cert", "What a node is shown that asks for a certificate. Default: LOOM_CERT."),
    ] = None,
    cert_key: Annotated[str | None, _file("cert-key", "Its key. Default: LOOM_CERT_KEY.")] = None,
) -> None:
    pass


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
