"""The commands about a log, declared; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from loom.cli.asked import UrlOption, Where
from loom.cli.helping import examples
from loom.cli.place import DataOption, NamespaceOption, data_directory

_JSON = typer.Option("--json", help="Print JSON instead of text, one object a line.")
_ALL = "0: all."

runs: typer.Typer = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
dlq: typer.Typer = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
effects: typer.Typer = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def declare(app: typer.Typer) -> None:
    """Give ``app`` the commands of this module."""
    app.add_typer(
        runs,
        name="runs",
        help="Show runs: each root event, and what followed from it.",
        epilog=examples(
            "loom runs --data ./data", "loom runs --state incomplete --json", "loom runs show 4f21"
        ),
    )
    app.command(
        epilog=examples(
            "loom logs --data ./data",
            "loom logs --run 4f21 --level warning",
            "loom logs --topic 'order.>' --since 15m --follow",
            "loom logs --json --limit 0 | jq .data",
        )
    )(logs)
    app.command(epilog=examples("loom why 4f21 --data ./data", "loom why 4f21 --json"))(why)
    app.command(
        epilog=examples(
            "loom replay 4f21 --data ./data",
            "loom replay --from 15m --speed 1",
            "loom replay 4f21 --agents --app shop.agents:app",
            "loom replay 4f21 --url local",
        )
    )(replay)
    app.command(
        epilog=examples(
            'loom sql "SELECT topic, count(*) FROM events GROUP BY topic"',
            'loom sql "SELECT * FROM run_states WHERE errors > 0" --json',
            "loom sql --schema",
        )
    )(sql)
    app.add_typer(
        dlq,
        name="dlq",
        help="Show events that were given up, and publish them anew.",
        epilog=examples(
            "loom dlq list --data ./data",
            "loom dlq show 1.42",
            """loom dlq redrive 1.42 --payload '{"item": "milk"}'""",
        ),
    )
    app.add_typer(
        effects,
        name="effects",
        help="Show calls that change something; settle the unknown.",
        epilog=examples(
            "loom effects list --unknown --data ./data",
            "loom effects show 4f21",
            """loom effects resolve 4f21 --done --result '{"paid": true}'""",
        ),
    )
    app.command(
        epilog=examples(
            "loom backup /backups/monday --data ./data", "loom backup monday --url local"
        )
    )(backup)
    app.command(epilog=examples("loom restore /backups/monday ./data"))(restore)
    app.command(epilog=examples("loom snapshot --data ./data"))(snapshot)


def logs(
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this agent.")] = None,
    thread: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Only of this thread; how its id begins or ends is enough."
        ),
    ] = None,
    correlation: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this request and what belongs to it.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only of this run; how its id begins or ends is enough."),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(
            metavar="FILTER", help="Only topics that this filter takes: 'order.*', 'loom.>'."
        ),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="Only from this level on: info, warning, error, critical."
        ),
    ] = None,
    code: Annotated[
        str | None, typer.Option(metavar="CODE", help="Only errors of this code: TIMEOUT.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN", help="Only from then on: 15m (ago), 2d, 14:05, 2026-05-01T14:05."
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Only before then.")] = None,
    grep: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Only where the data has this regular expression, in any case."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help=f"So many of the newest. {_ALL}")
    ] = 200,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is new, until Ctrl-C.")
    ] = False,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show the events and errors of a log.

    It reads beside a running engine, and a directory that no engine has open.
    """
    from loom.cli.logs import Wanted, show_logs

    wanted = Wanted(
        agent=agent,
        thread=thread,
        correlation=correlation,
        run=run,
        topic=topic,
        level=level,
        code=code,
        since=since,
        until=until,
        grep=grep,
        limit=limit,
    )
    raise typer.Exit(show_logs(Where(data, namespace, url), wanted, follow=follow, as_json=json))


@runs.callback()
def list_runs(
    context: typer.Context,
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help=f"So many of the newest. {_ALL}")
    ] = 50,
    state: Annotated[
        Literal["running", "ended", "incomplete"] | None, typer.Option(help="Only such runs.")
    ] = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show runs: each root event, and what followed from it."""
    if context.invoked_subcommand is not None:
        return
    from loom.cli.runs import show_runs

    raise typer.Exit(show_runs(Where(data, namespace, url), limit=limit, state=state, as_json=json))


@runs.command(name="show", epilog=examples("loom runs show 4f21 --data ./data"))
def runs_show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="How its id begins or ends is enough.")],
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show one run: its sums, its agents, its calls, its errors."""
    from loom.cli.runs import show_run

    raise typer.Exit(show_run(Where(data, namespace, url), run, as_json=json))


def sql(
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY", help="One SELECT in SQLite's language; - reads it from stdin."
        ),
    ] = None,
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    json: Annotated[bool, _JSON] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Show the tables and their columns.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="N", min=0.001, help="Seconds that it may take.")
    ] = 30.0,
) -> None:
    """Query a log with SQL.

    It asks the view of the log, a SQLite file that is derived from it. Nothing can be changed.
    """
    from loom.cli.sql import show_query

    output = "json" if json else "csv" if csv else "table"
    code = show_query(data, namespace, query, output=output, schema=schema, timeout=timeout)
    raise typer.Exit(code)


@dlq.command(
    name="list", epilog=examples("loom dlq list --data ./data", "loom dlq list --redriven --json")
)
def dlq_list(
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    redriven: Annotated[
        bool, typer.Option("--redriven", help="Also those that were published anew.")
    ] = False,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help=f"So many of the newest. {_ALL}")
    ] = 200,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """List the events that were given up, with their last errors."""
    from loom.cli.dlq import show_dead

    raise typer.Exit(
        show_dead(Where(data, namespace, url), redriven=redriven, limit=limit, as_json=json)
    )


@dlq.command(name="show", epilog=examples("loom dlq show 1.42 --data ./data"))
def dlq_show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="As `loom dlq list` shows it.")],
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show one event that was given up, and what led to it."""
    from loom.cli.dlq import show_letter

    raise typer.Exit(show_letter(Where(data, namespace, url), letter, as_json=json))


@dlq.command(
    name="redrive",
    epilog=examples(
        "loom dlq redrive 1.42 1.57 --data ./data",
        "loom dlq redrive --all",
        """loom dlq redrive 1.42 --payload '{"item": "milk"}'""",
    ),
)
def dlq_redrive(
    letters: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="As `loom dlq list` shows them.", show_default=False),
    ] = None,
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    every: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
    payload: Annotated[
        str | None, typer.Option(metavar="JSON", help="Other data than it had.")
    ] = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Publish dead letters anew.

    Each goes out once, and to the agent alone that gave it up. Without a node the app must be
    stopped: the log is opened for this, and the agent gets them at its next start.
    """
    from loom.cli.dlq import redrive

    given = letters or []
    code = redrive(Where(data, namespace, url), given, every=every, payload=payload, as_json=json)
    raise typer.Exit(code)


@effects.command(
    name="list",
    epilog=examples("loom effects list --data ./data", "loom effects list --unknown --json"),
)
def effects_list(
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Only those that nobody knows the end of.")
    ] = False,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help=f"So many of the newest. {_ALL}")
    ] = 200,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """List the calls that change something, and what became of them."""
    from loom.cli.effects import show_effects

    raise typer.Exit(
        show_effects(Where(data, namespace, url), unknown=unknown, limit=limit, as_json=json)
    )


@effects.command(name="show", epilog=examples("loom effects show 4f21 --data ./data"))
def effects_show(
    effect: Annotated[str, typer.Argument(metavar="ID", help="Its id, or its begin or end.")],
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show one effect: who wanted what, and what is known of it."""
    from loom.cli.effects import show_effect

    raise typer.Exit(show_effect(Where(data, namespace, url), effect, as_json=json))


@effects.command(
    name="resolve",
    epilog=examples(
        "loom effects resolve 4f21 --failed --note 'the bank never saw it'",
        """loom effects resolve 4f21 --done --result '{"paid": true}'""",
    ),
)
def effects_resolve(
    effect: Annotated[str, typer.Argument(metavar="ID", help="Its id, or its begin or end.")],
    *,
    done: Annotated[
        bool | None,
        typer.Option("--done/--failed", help="What you found out.", show_default=False),
    ] = None,
    result: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="What calls with its key are given. Default: null."),
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="How you know.")] = "",
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Say what became of an unknown effect.

    Without a node the app must be stopped: the log is opened for this. In a running app:
    app.effects.resolve.
    """
    from loom.cli.effects import resolve_effect

    if done is None:
        raise typer.BadParameter("say what became of it: --done or --failed")
    code = resolve_effect(
        Where(data, namespace, url), effect, done=done, result=result, note=note, as_json=json
    )
    raise typer.Exit(code)


def backup(
    to: Annotated[
        Path, typer.Argument(metavar="DEST", help="A new directory; with --url, a name for it.")
    ],
    *,
    data: DataOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Let this node copy its log, beside its data directory.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Copy a log, which may be in use, and check the copy."""
    from loom.cli.copying import show_backup, show_node_backup

    if url is not None:
        show_node_backup(Where(data, None, url).operator, str(to), as_json=json)
    else:
        show_backup(data_directory(data), to, as_json=json)


def restore(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="What `loom backup` has written.")],
    to: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A new data directory. Default: as for --data."),
    ] = None,
    *,
    data: DataOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Make a log of a backup, in a new directory.

    It is checked before it is there.
    """
    from loom.cli.copying import show_restore

    show_restore(source, data_directory(data) if to is None else to, as_json=json)


def snapshot(*, data: DataOption = None, json: Annotated[bool, _JSON] = False) -> None:
    """Let the next start of a stopped app read less.

    What its log folds to is kept beside it. An app that runs does this by itself.
    """
    from loom.cli.copying import show_snapshot

    show_snapshot(data_directory(data), as_json=json)


def replay(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="How its id begins or ends is enough.", show_default=False
        ),
    ] = None,
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="WHEN",
            help="From then on: 15m (ago), 14:05, 2026-05-01T14:05, or a position.",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Before this time or position.")
    ] = None,
    speed: Annotated[
        float, typer.Option(metavar="N", help="0: at once; 1: as fast as it was; 10: ten times so.")
    ] = 0.0,
    agents: Annotated[
        bool,
        typer.Option("--agents", help="Run the handlers again, on what was recorded, and compare."),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            "--app",
            metavar="TARGET",
            help="Whose handlers: module:app or a file.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show what happened in a run, or from some moment on.

    With --agents the handlers run again and nothing happens outside: calls, models, requests,
    memory and time are served from the record. Exit code 1 says that a handler does something else
    than it did.
    """
    from loom.cli.replay import Stretch, show_replay

    wanted = Stretch(run=run, since=since, until=until, speed=speed, agents=agents, app=target)
    raise typer.Exit(show_replay(Where(data, namespace, url), wanted, as_json=json))


def why(
    event: Annotated[
        str, typer.Argument(metavar="EVENT", help="How its id begins or ends is enough.")
    ],
    *,
    data: DataOption = None,
    namespace: NamespaceOption = None,
    url: UrlOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show why an event was published.

    That is the chain of events from the root, with the agents, calls and times between.
    """
    from loom.cli.why import show_why

    raise typer.Exit(show_why(Where(data, namespace, url), event, as_json=json))
