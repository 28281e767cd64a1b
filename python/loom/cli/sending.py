"""``loom emit``, ``loom call`` and ``loom watch``: a person at a node."""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from loom.cli.asked import Where, at_node
from loom.cli.show import EventLines, event_record, print_json
from loom.codec import decode, encode
from loom.errors import InvalidParams, LoomError

if TYPE_CHECKING:
    from loom.context import Context


def emit(where: Where, topic: str, data: str | None, *, as_json: bool, **options: Any) -> None:
    """Publish one event and say what it was promised."""
    value = as_value(data, "data")
    given = {name: option for name, option in options.items() if option is not None}

    async def send(ctx: "Context[Any]") -> Any:
        return await ctx.emit(topic, value, **given)

    receipt = asyncio.run(at_node(where.anywhere, send))
    told = {
        "id": receipt.id,
        "level": receipt.level,
        "matched": receipt.matched,
        "position": receipt.position,
    }
    if as_json:
        print_json(told)
        return
    heard = "" if receipt.matched is None else f", heard by {receipt.matched}"
    at = f" at {receipt.position}" if receipt.position else ""
    sys.stdout.write(f"{receipt.id} {receipt.level}{at}{heard}\n")


def call(
    where: Where,
    capability: str,
    args: str | None,
    *,
    timeout: float | None,
    key: str | None,
    streams: bool,
    as_json: bool,
) -> None:
    """Call a capability and print its result, or its chunks as they come."""
    given: object = as_value(args, "args")
    if not isinstance(given, dict | None):
        raise InvalidParams(
            "the arguments are no JSON object", field="args", hint="""such as '{"city": "Bonn"}'"""
        )
    arguments = cast("dict[str, Any]", given or {})

    async def ask(ctx: "Context[Any]") -> None:
        limit = await _declared(ctx, capability) if timeout is None else timeout
        if not streams:
            result = await ctx.tool(capability, args=arguments, timeout=limit, key=key)
            _show(result, as_json=as_json)
            return
        async with ctx.stream(capability, args=arguments, timeout=limit, key=key) as chunks:
            async for chunk in chunks:
                _show(chunk, as_json=as_json)
                sys.stdout.flush()

    _interruptible(at_node(where.anywhere, ask))


async def _declared(ctx: "Context[Any]", capability: str) -> float | None:
    """Return how long the capability may take, the longest of its versions; None: nobody says."""
    offered = await ctx.capabilities()
    return max((one.timeout for one in offered if one.name == capability), default=None)


def watch(where: Where, patterns: list[str], *, count: int, start: str, as_json: bool) -> None:
    """Print events as they come, until there were ``count`` (0: until Ctrl-C)."""
    show = _shower(as_json=as_json)

    async def listen(ctx: "Context[Any]") -> None:
        seen = 0
        async with ctx.watch(*patterns, qos="batched", start=_start(start)) as events:
            async for event in events:
                show(event)
                sys.stdout.flush()
                seen += 1
                if seen == count:
                    return

    _interruptible(at_node(where.anywhere, listen))


def as_value(text: str | None, field: str) -> Any:
    """Return what JSON says; None for none.

    Raises:
        InvalidParams: it is no JSON.
    """
    if text is None:
        return None
    try:
        return decode(text.encode())
    except (LoomError, ValueError) as error:
        told = error.message if isinstance(error, LoomError) else str(error)
        raise InvalidParams(
            f"{text[:80]!r} is no JSON: {told}",
            field=field,
            hint="""quote it for your shell: '{"a": 1}', '"text"'""",
        ) from None


def _start(text: str) -> Any:
    from loom.node.looking import moment

    if text in {"now", "beginning"}:
        return text
    try:
        import datetime
        import time

        seconds = moment(text, field="from", now=time.time())
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except InvalidParams:
        return text  # a position


def _show(value: Any, *, as_json: bool) -> None:
    if isinstance(value, str) and not as_json:
        sys.stdout.write(f"{value}\n")
    elif isinstance(value, bytes):
        sys.stdout.buffer.write(value)
    else:
        sys.stdout.write(encode(value, "result").decode() + "\n")


def _shower(*, as_json: bool) -> Callable[[Any], None]:
    if as_json:
        return lambda event: print_json(event_record(event))
    from rich.console import Console

    return EventLines(Console(soft_wrap=True)).show


def _interruptible(work: Any) -> None:
    """Run ``work`` until it ends or Ctrl-C, whose exit code it has then."""
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
