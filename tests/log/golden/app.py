"""The app of the golden log. It must not change: later versions must replay what it did."""

from typing import Any

from pydantic import BaseModel

import loom

app = loom.App("golden")


class Customer(BaseModel):
    orders: list[str] = []


@app.capability("price", effect="pure")
async def price(number: int) -> int:
    """Say what an order costs."""
    return 100 + number


@app.agent("till", topics=["order.placed"], version="1")
class Till(loom.Agent[Customer]):
    """Takes orders."""

    async def on_event(self, ctx: loom.Context[Customer], event: loom.Event[Any]) -> None:
        """Ask for the price, and for the stock."""
        cost = await ctx.tool(price.bind(event.data["number"]))
        seen = await ctx.memory.get("orders", 0)
        await ctx.memory.put("orders", seen + 1)
        stock = await ctx.request(
            "stock.asked", {"id": str(ctx.uuid())}, key=str(ctx.random.random())
        )
        ctx.state.orders.append(f"{cost} of {stock.data} at {ctx.now()}")
        await ctx.emit("order.taken", {"cost": cost, "so far": seen + 1})


@app.agent("store", topics=["stock.asked"])
async def store(ctx: loom.Context[Any], event: loom.Event[Any]) -> int:
    """Count what is left."""
    return len(event.data["id"])


@app.agent("keeper", topics=["order.kept"])
async def keeper(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
    """Hear what is durable."""
    await ctx.emit("kept", event.data)
