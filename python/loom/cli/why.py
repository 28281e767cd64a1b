"""``loom why``: the chain of causes that leads to an event."""

from rich.console import Console
from rich.text import Text

from loom.cli.asked import Where
from loom.cli.replay import opened
from loom.cli.show import print_json, printable
from loom.codec import encode
from loom.replay import Chain, Link
from loom.replay.why import chain_from

_PREVIEW = 160  # characters of data on one line
_NAMED = 12  # calls and steps of one turn that are named


def show_why(where: Where, event: str, *, as_json: bool) -> int:
    """Show the chain; return the exit code."""
    if where.node is not None:
        chain = chain_from(where.ask("why", event=event))
    else:
        chain = opened(where.data, where.namespace).why(event)
    if as_json:
        print_json({"type": "chain", **chain.shown()})
        return 0
    _print(chain)
    return 0


def _print(chain: Chain) -> None:
    console = Console(highlight=False)
    if not chain.whole:
        console.print(Text("what it began with is not kept any more", "yellow"))
    began = chain.links[0].at if chain.links else 0.0
    for depth, link in enumerate(chain.links):
        _print_link(console, link, depth, link.at - began)
    console.print(Text(f"run {chain.run_id}", "dim"))


def _print_link(console: Console, link: Link, depth: int, since: float) -> None:
    indent = "  " * min(depth, 10)
    if link.agent is not None:
        again = f", attempt {link.attempt}" if link.attempt > 1 else ""
        told = f"{link.agent}, after {_ms(link.waited)}{again}, published {_ms(link.took)} later:"
        console.print(Text(f"            {indent}{printable(told)}", "cyan"), soft_wrap=True)
        for made in link.made[:_NAMED]:
            code = f" {made.code}" if made.code else ""
            line = f"{made.kind} {made.name} {_ms(made.seconds)}{code}"
            console.print(Text(f"              {indent}{printable(line)}", "dim"), soft_wrap=True)
        if len(link.made) > _NAMED:
            more = f"and {len(link.made) - _NAMED} more"
            console.print(Text(f"              {indent}{more}", "dim"))
    line = Text(f"+{max(0.0, since):9.3f}  {indent}")
    line.append(printable(link.topic), "bold")
    line.append(printable(f" ← {link.sender.partition('/')[2]}  {link.id}"), "dim")
    console.print(line, soft_wrap=True)
    if link.data is not None:
        text = encode(link.data).decode()
        cut = text if len(text) <= _PREVIEW else f"{text[:_PREVIEW]}…"
        console.print(Text(f"              {indent}{printable(cut)}"), soft_wrap=True)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
