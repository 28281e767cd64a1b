"""A client whose whole process stands still, while its work goes to another."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

import loom
from tests.faults.frozen import worker
from tests.faults.proxy import Proxy
from tests.faults.trials import node_behind

KEEP = 0.3
"""Seconds that the node keeps the session of the frozen one: its work moves on then."""


@pytest.mark.timeout(30)
@pytest.mark.requirement("FAULT-FROZEN")
async def test_a_frozen_client_whose_work_another_did_changes_nothing_when_it_wakes(
    tmp_path: Path,
) -> None:
    charged: list[tuple[int, str]] = []
    bank = loom.App("bank")

    @bank.capability("card.charge", effect="unsafe")
    async def charge(order: int, by: str) -> None:
        charged.append((order, by))

    free = asyncio.Event()
    free.set()
    awake = worker("awake", lambda: None, free)
    async with (
        Proxy() as proxy,
        node_behind(proxy, tmp_path / "data") as (_, served, token),
        bank.running(url=f"loom://{served.addresses[0]}", token=token) as ctx,
    ):
        frozen = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.frozen", f"loom://{proxy.address}", str(KEEP)),
            env={**os.environ, "LOOM_TOKEN": token},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert frozen.stdout is not None
            assert frozen.stdin is not None
            assert await frozen.stdout.readline() == b"ready\n"
            async with ctx.watch("charged.>", start="now") as done:
                await ctx.emit("order.new", 7, ack="os")
                assert await frozen.stdout.readline() == b"begun\n"
                frozen.send_signal(signal.SIGSTOP)
                proxy.reset()  # nobody waits 15 s for its silence
                async with awake.running(url=f"loom://{served.addresses[0]}", token=token):
                    assert (await anext(done)).data == "awake"
                    assert charged == [(7, "awake")]
                    frozen.stdin.write(b"go on\n")
                    frozen.send_signal(signal.SIGCONT)
                    told = json.loads(await frozen.stdout.readline())
                    # INDETERMINATE: it went to the connection before that was found to be over
                    assert told.keys() == {"charge", "publish"}
                    assert set(told.values()) <= {"FENCED", "INDETERMINATE"}
                    # what came of it would be there by now: behind it another order is done
                    await ctx.emit("order.new", 8, ack="os")
                    by = (await anext(done)).data
                    assert charged == [(7, "awake"), (8, by)]
            assert served.stats()["expired"] == 1
        finally:
            frozen.kill()
            await frozen.wait()
