"""The market, whole."""

import pytest

from examples.market import app as market
from loom.testing import Harness


@pytest.mark.requirement("COLLAB-CONTRACT", "COLLAB-BARRIER")
@pytest.mark.parametrize(
    ("args", "painters"),
    [([], ["bob", "ada", "ada"]), (["12"], ["bob", "ada", "ada", "eve"]), (["1"], ["bob"])],
)
async def test_each_part_goes_to_the_cheapest_who_can(args: list[str], painters: list[str]) -> None:
    async with Harness(market.app) as h:
        done = await market.main(h.ctx, args)
        await h.idle()
        replies = h.events("thread.*.reply")
        met = [event for event in replies if event.sender == "default/loom.barrier"]

    assert [part.by for part in done] == painters
    assert sum(part.metres for part in done) == int(args[0] if args else market.METRES)
    assert {tuple(event.data["members"]) for event in met} == {
        ("default/ada", "default/bob", "default/eve")
    }
