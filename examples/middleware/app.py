"""Three pieces of middleware to copy: logging, tracing and auth; and a shop that uses them."""

import time
from contextvars import ContextVar
from typing import Any

import loom
from loom.codec import encode
from loom.errors import Denied
from loom.topics import matches

parent: ContextVar[str | None] = ContextVar("parent", default=None)
spans: list[dict[str, Any]] = []


def name_of(item: loom.Item) -> str:
    """Say what an item is called."""
    return f"call {item.name}" if isinstance(item, loom.Call) else f"event {item.topic}"


async def logging(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
    """Log what ends, how, and after how long. Arguments and data stay out: they may be secret."""
    began = time.perf_counter()
    outcome = "ok"
    try:
        return await next(item)
    except loom.LoomError as error:
        outcome = error.code
        raise
    finally:
        spent = (time.perf_counter() - began) * 1000
        ctx.log.info("%s: %s after %.1f ms", name_of(item), outcome, spent)


async def tracing(ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
    """Record a span for each handler and call. A run is a trace.

    The span of a handler is its event, and follows from the event that caused it; the span of a
    call is inside the handler that makes it. So nothing has to be carried from one to the next.
    """
    if isinstance(item, loom.Call):
        span = {"span": str(ctx.uuid()), "parent": parent.get(), "trace": ctx.run_id}
    else:
        span = {"span": item.id, "parent": item.causation_id, "trace": item.run_id}
    token = parent.set(span["span"])
    began = time.perf_counter()
    try:
        return await next(item)
    finally:
        parent.reset(token)
        took = round((time.perf_counter() - began) * 1000, 3)
        spans.append({**span, "name": name_of(item), "agent": ctx.agent, "ms": took})


class Auth:
    """Let an agent call only what it was granted, and hear a topic only from those named.

    ``calls`` maps an agent to filters of capabilities, ``senders`` a filter of topics to senders.
    The sender of an event is stamped by the engine; data cannot fake it. Middleware runs in the
    caller's own process: it keeps honest code honest, and is no boundary against other code.
    """

    def __init__(self, *, calls: dict[str, list[str]], senders: dict[str, list[str]]) -> None:
        self.calls = calls
        self.senders = senders

    async def __call__(self, ctx: loom.Context[Any], item: loom.Item, next: loom.Next) -> Any:
        """Go on, or refuse.

        Raises:
            Denied: there is no grant for it.
        """
        if isinstance(item, loom.Call):
            if not any(matches(granted, item.name) for granted in self.calls.get(ctx.agent, [])):
                raise Denied(f"{ctx.agent} may not call {item.name}", field="name", who=ctx.agent)
        else:
            for topics, senders in self.senders.items():
                if matches(topics, item.topic) and item.sender not in senders:
                    raise Denied(f"{item.sender} may not publish {item.topic}", field="topic")
        return await next(item)


auth = Auth(calls={"till": ["prices.>"]}, senders={"order.>": ["default/shop"]})
app = loom.App("shop", middleware=[tracing, logging, auth])


@app.capability("prices.get", effect="pure")
async def price(item: str) -> float:
    """Say what one piece costs."""
    return {"tea": 4.5, "cups": 12.0}[item]


@app.capability("safe.open", effect="unsafe")
async def open_safe() -> str:
    """Open the safe."""
    return "open"


@app.agent("till", topics=["order.>"])
async def till(ctx: loom.Context, event: loom.Event[Any]) -> float:
    """Sell."""
    if event.topic == "order.everything":
        await ctx.tool(open_safe.bind())
    return await ctx.tool(price.bind(item=event.data["item"])) * event.data["pieces"]


async def main(ctx: loom.Context, args: list[str]) -> str:
    """Buy, try to rob, and show the trace."""
    answer = await ctx.request("order.new", {"item": "tea", "pieces": 3})
    try:
        await ctx.request("order.everything", {})
        robbed = "open"
    except Denied as error:
        robbed = error.message
    lines = [f"three teas: {answer.data}", f"the safe: {robbed}", "spans:"]
    return "\n".join(lines + [encode(span).decode() for span in spans])
