"""The example of middleware: what it prints, refuses and records."""

import logging

import pytest

from examples.middleware import app as shop
from loom.errors import Denied
from loom.testing import Harness

pytestmark = pytest.mark.requirement("MIDDLEWARE")


async def test_the_shop_sells_refuses_and_traces(caplog: pytest.LogCaptureFixture) -> None:
    shop.spans.clear()
    with caplog.at_level(logging.INFO, "loom.agent.till"):
        async with Harness(shop.app) as h:
            shown = await shop.main(h.ctx, [])
            assert h.calls("safe.open") == 0
    assert "three teas: 13.5" in shown
    assert "the safe: till may not call safe.open" in shown
    by_name = {span["name"]: span for span in shop.spans}
    order, price = by_name["event order.new"], by_name["call prices.get"]
    assert price["parent"] == order["span"]
    assert price["trace"] == order["trace"]
    assert order["parent"] is None
    assert by_name["event order.everything"]["trace"] != order["trace"]
    assert any("call safe.open: DENIED after" in line for line in caplog.messages)


async def test_an_order_of_a_stranger_is_refused() -> None:
    async with Harness(shop.app) as h:
        auth = shop.Auth(calls={}, senders={"order.>": ["default/somebody"]})
        kept = shop.auth.senders
        shop.auth.senders = auth.senders
        try:
            with pytest.raises(Denied, match="default/shop may not publish"):
                await h.ctx.request("order.new", {"item": "tea", "pieces": 3})
        finally:
            shop.auth.senders = kept
