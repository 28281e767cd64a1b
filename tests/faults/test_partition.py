"""Partitions and loss by nftables between network namespaces: where root is available."""

import pytest

from tests.faults import partition


@pytest.mark.net
@pytest.mark.timeout(300)
@pytest.mark.requirement("FAULT-PARTITION")
def test_partitions_and_loss_lose_repeat_and_reorder_nothing() -> None:
    if (why := partition.missing()) is not None:
        pytest.skip(why)
    assert partition.partitions(1, 10)["partitions"] == 10
