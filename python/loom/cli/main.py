"""The ``loom`` command. It only declares: each command imports what it needs when it runs."""

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loom import __version__
from loom.cli import log_commands, node_commands
from loom.cli.asked import InOption, ListOption, RunOption, Where
from loom.cli.helping import InOrder, examples
from loom.errors import InvalidParams
from loom.limits import WORKERS

if TYPE_CHECKING:
    from loom.errors import LoomError

app: typer.Typer = typer.Typer(
    name="loom",
    cls=InOrder,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run and look into systems of agents that react to events.",
)

# exit codes: 0 ok, 1 failure, 2 usage, 3 configuration, 4 not found, 5 not allowed, 6 unavailable,
# 7 timeout
_EXIT_CODES = {
    "INVALID_PARAMS": 2,
    "NOT_FOUND": 4,
    "UNAUTHENTICATED": 5,
    "DENIED": 5,
    "UNAVAILABLE": 6,
    "PROVIDER_UNAVAILABLE": 6,
    "TIMEOUT": 7,
}

_TARGET = typer.Argument(
    metavar="TARGET",
    help="The app: `module:app`, or a file such as app.py or app.py:app. "
    "Default: [app] target of loom.toml.",
    show_default=False,
)
_DATA = typer.Option(
    "--data",
    metavar="DIR",
    help="The data directory of the log, made where there is none. Default: [log] dir.",
    show_default=False,
)
_JSON = typer.Option("--json", help="Print JSON instead of text, one object a line.")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"loom {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run and look into systems of agents that react to events."""


@app.command(
    epilog=examples(
        "loom run app.py",
        "loom run shop.agents:app --data ./data",
        "loom run shop.agents:app --url local",
        "loom run shop.agents:app --workers 4",
        "loom run examples/trio/app.py -- 'What is asyncio?'",
    )
)
def run(
    context: typer.Context,
    target: Annotated[str | None, _TARGET] = None,
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORD", help="What the module's `main(ctx, args)` gets, after `--`."
        ),
    ] = None,
    *,
    data: Annotated[str | None, _DATA] = None,
    url: RunOption = None,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Go on although the log is damaged; what is lost is marked in it as a gap.",
        ),
    ] = False,
    json: Annotated[bool, _JSON] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no events and no figures, only the result.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            max=WORKERS,
            metavar="N",
            help="Run the app in N processes that share its events and calls, at the node of --url "
            "or at one of their own. 0: in this process.",
        ),
    ] = 0,
) -> None:
    """Run an app and show its events as they flow.

    Where the module has `async def main(ctx, args)`, it is run once and its result printed; else
    the app runs until Ctrl-C. The first Ctrl-C lets it finish what was published, the second ends
    it at once.
    """
    from loom.cli.run import Shown, run_target

    after: list[str] = context.obj or []
    shown = Shown(as_json=json, quiet=quiet)
    arguments = [*(args or []), *after]
    where = Where(data, None, url)
    raise typer.Exit(
        run_target(target, arguments, shown, where, accept_loss=accept_loss, workers=workers)
    )


@app.command(
    name="list",
    epilog=examples(
        "loom list agents app.py",
        "loom list capabilities shop.agents:app --json",
        "loom list agents --url local",
    ),
)
def list_(
    kind: Annotated[
        Literal["agents", "topics", "capabilities"],
        typer.Argument(help="What to list."),
    ],
    target: Annotated[str | None, _TARGET] = None,
    *,
    namespace: InOption = None,
    url: ListOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """List the agents, topics or capabilities.

    Those of an app, or with --url those that are at a node now. The app's module is imported, and
    nothing of it is run.
    """
    from loom.cli.listing import list_node, list_target

    where = Where(None, namespace, url)
    if target is None and where.node is not None:
        list_node(kind, where, as_json=json)
    elif target is not None and url is not None:
        raise InvalidParams(
            "a target and --url name two places", field="url", hint="leave one of them out"
        )
    else:
        list_target(kind, target, as_json=json)


node_commands.declare(app)
log_commands.declare(app)


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    try:
        app(args=words[:cut], obj=words[cut + 1 :])
    except BrokenPipeError:
        # Who read our output has left. What is still buffered goes nowhere, silently.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        from loom.errors import LoomError

        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            typer.echo("loom: the output cannot be written: no space is left", err=True)
            sys.exit(1)
        if not isinstance(error, LoomError):
            raise
        _show(error)
        sys.exit(_EXIT_CODES.get(error.code, 1))


def _show(error: "LoomError") -> None:
    typer.echo(f"loom: {error.code}: {error.message}", err=True)
    for name, value in (("field", error.field), ("limit", error.limit), ("hint", error.hint)):
        if value is not None:
            typer.echo(f"  {name}: {value}", err=True)


if __name__ == "__main__":
    main()
