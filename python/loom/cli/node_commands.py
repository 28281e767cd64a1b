"""The commands about a node, declared; each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from loom.cli.asked import InOption, NodeOption, TokensOption, Where
from loom.cli.helping import AsGiven, examples

_JSON = typer.Option("--json", help="Print JSON instead of text, one object a line.")
_DATA = typer.Option(
    "--data",
    metavar="DIR",
    help="The data directory of a node, instead of one that runs.",
    show_default=False,
)
_OPERATOR = typer.Option(
    "--namespace",
    metavar="NAME",
    help="The namespace to work in. Default: that of operators, default.",
    show_default=False,
)
_ID = typer.Argument(metavar="ID", help="As `loom token list` shows it.")

token: typer.Typer = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def declare(app: typer.Typer) -> None:
    """Give ``app`` the commands of this module."""
    app.command(
        cls=AsGiven,
        epilog=examples(
            "loom up",
            "loom up --data ./data --bind 127.0.0.1:0 --json",
            "loom up --bind 0.0.0.0:7420 --tls-cert node.pem --tls-key node.key",
            "loom up --bind 0.0.0.0:7420 --tls-cert node.pem --tls-key node.key "
            "--host node.example.org --origin https://app.example.org",
        ),
    )(up)
    app.command(
        epilog=examples(
            """loom emit order.placed '{"item": "tea"}'""",
            """loom emit order.placed '{"item": "tea"}' --ack disk --key customer-7""",
        )
    )(emit)
    app.command(
        epilog=examples(
            """loom call web.search '{"query": "tea"}'""",
            """loom call report.write '{"year": 2026}' --stream --timeout 120""",
        )
    )(call)
    app.command(
        epilog=examples(
            "loom watch 'order.>'",
            "loom watch 'loom.error.>' --json",
            "loom watch 'order.>' --from beginning --count 10",
        )
    )(watch)
    app.add_typer(
        token,
        name="token",
        help="Say who may attach to a node, and what they may do there.",
        epilog=examples(
            "loom token create web --subscribe 'order.>' --call 'shop.*' --expires 30d",
            "loom token list",
            "loom token revoke 1f3a9c02",
        ),
    )
    app.command(epilog=examples("loom sessions", "loom sessions --url local --json"))(sessions)
    app.command(epilog=examples("loom stats", "loom stats --url local --json"))(stats)
    app.command(epilog=examples("loom drain", "loom drain --url local"))(drain)


def up(
    *,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="The data directory of the log, made where there is none. Default: [log] dir, "
            "else the log is in memory.",
            show_default=False,
        ),
    ] = None,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where to listen; port 0 is any that is free. Default: [bridge] bind.",
            show_default=False,
        ),
    ] = None,
    unix: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="A Unix socket to listen on.", show_default=False),
    ] = None,
    tls_cert: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The node's certificate, PEM.", show_default=False),
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="Its key, PEM.", show_default=False)
    ] = None,
    tls_client_ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Who vouches for clients, PEM; they need one.", show_default=False
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="A name by which it is reached besides its addresses: WebSockets that name "
            "another host are refused. Several times.",
            show_default=False,
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Where web pages may connect from, such as https://app.example.org. Several "
            "times.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Be reachable from other machines without TLS."),
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Go on although the log is damaged; what is lost is marked in it as a gap.",
        ),
    ] = False,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Run a node: agents of other processes meet there.

    It listens on this machine only, and asks for a token; programs of the same user find both. The
    first Ctrl-C lets what is under way end, within ten seconds; the second ends it at once.
    """
    from loom.address import parse_host
    from loom.cli.up import plan_of, run_node

    plan = plan_of(
        data,
        accept_loss=accept_loss,
        bind=tuple(bind or ()),
        unix=_path(unix),
        tls_cert=_path(tls_cert),
        tls_key=_path(tls_key),
        tls_client_ca=_path(tls_client_ca),
        hosts=tuple(parse_host(one) for one in host or ()),
        origins=tuple(origin or ()),
        insecure=insecure,
    )
    raise typer.Exit(run_node(plan, named=bool(bind), as_json=json))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def emit(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Such as order.placed.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="JSON", help="The data. Default: null.", show_default=False),
    ] = None,
    *,
    ack: Annotated[
        Literal["accepted", "os", "disk"] | None,
        typer.Option(help="What it must have reached before this returns.", show_default=False),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Orders it among those with the same.")
    ] = None,
    qos: Annotated[
        Literal["realtime", "batched", "background"] | None,
        typer.Option(help="Its delivery class.", show_default=False),
    ] = None,
    thread: Annotated[
        str | None, typer.Option(metavar="ID", help="The conversation it belongs to.")
    ] = None,
    namespace: InOption = None,
    url: NodeOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Publish an event at a node, and say what it was promised."""
    from loom.cli.sending import emit as send

    where = Where(None, namespace, url)
    send(where, topic, data, as_json=json, ack=ack, key=key, qos=qos, thread=thread)


def call(
    capability: Annotated[str, typer.Argument(metavar="CAPABILITY", help="Such as web.search.")],
    args: Annotated[
        str | None,
        typer.Argument(metavar="JSON", help="The arguments, an object.", show_default=False),
    ] = None,
    *,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Seconds to wait. Default: what it declares.", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Calls with one key have one effect.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print chunks as they come.")] = False,
    namespace: InOption = None,
    url: NodeOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print texts as JSON, too.")] = False,
) -> None:
    """Call a capability at a node, and print its result."""
    from loom.cli.sending import call as ask

    where = Where(None, namespace, url)
    ask(where, capability, args, timeout=timeout, key=key, streams=stream, as_json=json)


def watch(
    patterns: Annotated[list[str], typer.Argument(metavar="FILTER", help="Such as 'order.>'.")],
    *,
    count: Annotated[
        int, typer.Option(metavar="N", min=0, help="End after so many. 0: go on until Ctrl-C.")
    ] = 0,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="WHEN",
            help="Durable events from there on, too: beginning, 15m (ago), 14:05, or a position.",
        ),
    ] = "now",
    namespace: InOption = None,
    url: NodeOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Show events at a node as they come."""
    from loom.cli.sending import watch as listen

    listen(Where(None, namespace, url), patterns, count=count, start=start, as_json=json)


_FILTERS = {
    "publish": "Topics that may be published to.",
    "subscribe": "Topics that may be heard.",
    "call": "Capabilities that may be called.",
    "provide": "Capabilities that may be offered.",
    "observe": "What may be looked at: the node, and the engine's own events.",
    "admin": "What may be administered.",
}


def _filters(name: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}", metavar="FILTER", help=f"{_FILTERS[name]} Several times.", show_default=False
    )
    return option


@token.command(
    name="create",
    epilog=examples(
        "loom token create web --subscribe 'order.>' --call 'shop.*' --expires 30d",
        "loom token create ci --namespace staging --all",
    ),
)
def token_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is for, in words.")],
    *,
    publish: Annotated[list[str] | None, _filters("publish")] = None,
    subscribe: Annotated[list[str] | None, _filters("subscribe")] = None,
    call: Annotated[list[str] | None, _filters("call")] = None,
    provide: Annotated[list[str] | None, _filters("provide")] = None,
    observe: Annotated[list[str] | None, _filters("observe")] = None,
    admin: Annotated[list[str] | None, _filters("admin")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    expires: Annotated[
        str | None,
        typer.Option(metavar="AFTER", help="It ends after 90m, 12h, 30d or 8w. Default: never."),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where it is good; '*': anywhere. Default: default.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[str | None, _DATA] = None,
    url: TokensOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Make a token and print it. It is shown this once.

    A node that runs is asked; with --data, the directory of one that does not is written.
    """
    from loom.cli.tokens import create_token
    from loom.node.tokens import Grants

    given = (publish, subscribe, call, provide, observe, admin)
    grants = {name: list(found or ()) for name, found in zip(_FILTERS, given, strict=True)}
    if every:
        grants = Grants.everything().as_json
    create_token(Where(data, namespace, url), name, grants, expires=expires, as_json=json)


@token.command(name="list", epilog=examples("loom token list", "loom token list --json"))
def token_list(
    *,
    namespace: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only those that are good there.", show_default=False),
    ] = None,
    data: Annotated[str | None, _DATA] = None,
    url: TokensOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """List the tokens: for whom, where, what they allow, until when."""
    from loom.cli.tokens import list_tokens

    list_tokens(Where(data, namespace, url), as_json=json)


@token.command(name="revoke", epilog=examples("loom token revoke 1f3a9c02"))
def token_revoke(
    id_: Annotated[str, _ID],
    *,
    namespace: Annotated[str | None, _OPERATOR] = None,
    data: Annotated[str | None, _DATA] = None,
    url: TokensOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Take a token away; the sessions that came with it end within seconds."""
    from loom.cli.tokens import revoke_token

    revoke_token(Where(data, namespace, url), id_, as_json=json)


def sessions(
    *,
    namespace: Annotated[str | None, _OPERATOR] = None,
    url: NodeOption = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """List who is attached to a node."""
    from loom.cli.listing import list_sessions

    list_sessions(Where(None, namespace, url).operator, as_json=json)


def stats(
    *,
    namespace: Annotated[str | None, _OPERATOR] = None,
    url: NodeOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print them on one line, and not to be read by a person.")
    ] = False,
) -> None:
    """Print the figures of a node, as JSON."""
    from loom.cli.show import print_json

    figures = Where(None, namespace, url).operator.ask("stats")
    print_json(figures, indent=0 if json else 2)


def drain(*, url: NodeOption = None) -> None:
    """Let a node end.

    It takes nothing new, and goes when what is under way has ended.
    """
    Where(None, None, url).operator.ask("drain")
    typer.echo("the node is stopping", err=True)
