"""A worker that says when it has begun, and goes on when it is told: ``python -m … URL KEEP``.

It is frozen meanwhile by the test. What became of what it then does, it prints as a line of JSON.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable

import loom
from loom.errors import LoomError
from loom.runtime.running import running


def worker(name: str, begun: Callable[[], None], may_go_on: asyncio.Event) -> loom.App:
    """An app that charges a card for each order, and says so."""
    app = loom.App(name)

    @app.agent("charges", topics=["order.>"], group="charges", concurrency=1)
    async def charges(ctx: loom.Context, event: loom.Event[int]) -> None:
        begun()
        await may_go_on.wait()
        told: dict[str, str] = {}
        for what in ("charge", "publish"):
            try:
                if what == "charge":
                    await ctx.tool("card.charge", args={"order": event.data, "by": name})
                else:
                    await ctx.emit("charged.order", name, ack="os")
                told[what] = "done"
            except LoomError as error:
                told[what] = error.CODE
        print(json.dumps(told), flush=True)

    return app


async def main(url: str, keep: float) -> None:
    """Work until it is killed."""
    go_on = asyncio.Event()
    app = worker("frozen", lambda: print("begun", flush=True), go_on)
    async with running(app, url=url, token=os.environ["LOOM_TOKEN"], keep=keep):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        go_on.set()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
