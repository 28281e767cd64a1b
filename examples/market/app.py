"""A market: a job for three is shared out by bids, and done when all have met.

    loom run examples/market/app.py
    loom run examples/market/app.py -- 12

The owner of a house wants its fence painted, in parts. Each part is a contract: the painters bid by
what they ask and how tired they are, the cheapest gets it, and whoever runs out of paint loses it
to the next. Before they begin, the painters meet; who is late is not waited for.
"""

from pydantic import BaseModel

import loom
from loom.collab import Bid, Contractor, Proposal, barrier, contract_net, fanout
from loom.errors import Exhausted

METRES = 9
PART = 3

app = loom.App("market")


class Fence(BaseModel):
    """A part of a fence, in metres."""

    metres: int


class Painted(BaseModel):
    by: str
    metres: int


class Morning(BaseModel):
    """Who has met before work."""

    present: list[str]
    all_there: bool


class Painter(Contractor[Fence]):
    """Asks a price for each metre, more with each job it has done, and has so much paint."""

    price: float = 1.0
    paint: int = 100
    jobs: int = 0

    async def bid(self, ctx: loom.Context, task: Fence) -> Proposal | None:
        if self.paint == 0:
            return None
        asked = task.metres * (self.price + self.jobs)
        return Proposal(score=-asked, offer={"asked": asked})

    async def execute(self, ctx: loom.Context, task: Fence) -> Painted:
        self.jobs += 1
        left, self.paint = self.paint, max(0, self.paint - task.metres)
        if left < task.metres:
            raise Exhausted("out of paint", hint="buy some")
        return Painted(by=ctx.agent, metres=task.metres)

    @loom.on("morning")
    async def on_morning(self, ctx: loom.Context, event: loom.Event) -> Morning:
        met = await barrier(ctx, "before-work", 3, timeout=2)
        return Morning(present=list(met.members), all_there=met.complete)


@app.agent("ada", topics=["job.paint"])
class Ada(Painter):
    price = 2.0


@app.agent("bob", topics=["job.paint"])
class Bob(Painter):
    price = 1.0
    paint = 4  # enough for one part, and then it finds out


@app.agent("eve", topics=["job.paint"])
class Eve(Painter):
    price = 3.0


def cheapest(bid: Bid) -> float:
    return -float(bid.offer["asked"])


@app.agent("owner", topics=["paint.fence"])
class Owner(loom.Agent):
    async def on_event(self, ctx: loom.Context, event: loom.Event[Fence]) -> list[Painted]:
        async with fanout(ctx, ["morning"], timeout=5, returns=Morning) as greeting:
            morning = await greeting.any()
        ctx.log.info("met before work: %s", ", ".join(morning.present))
        done: list[Painted] = []
        left = event.data.metres
        while left > 0:
            part = Fence(metres=min(PART, left))
            award = await contract_net(
                ctx,
                part,
                topic="job.paint",
                bid_timeout=2,
                timeout=10,
                score=cheapest,
                returns=Painted,
            )
            for failed in award.failures:
                ctx.log.warning("%s lost a part: %s", failed.target, failed.error.message)
            done.append(award.result)
            left -= part.metres
        return done


async def main(ctx: loom.Context, args: list[str]) -> list[Painted]:
    metres = int(args[0]) if args else METRES
    answer = await ctx.request(
        "paint.fence", Fence(metres=metres), timeout=60, returns=list[Painted]
    )
    return answer.data
