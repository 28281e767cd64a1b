"""A session that a fault does not touch: how long its realtime events take meanwhile.

``python -m tests.faults.witness URL`` (LOOM_TOKEN) sends from one session to another at a node, in
a process of its own, until its input ends. Then it prints what it has measured as JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import loom

PAUSE: Final = 0.005
"""Seconds between two events."""
LAST: Final = 5.0
"""Seconds in which the last one must have come."""


def summary(latencies: list[float], sent: int) -> dict[str, Any]:
    """Return percentiles in ms; an event that never came counts as one that took for ever."""
    latencies = sorted(latencies)
    if not latencies or len(latencies) < sent * 0.99:
        raise AssertionError(f"of {sent} realtime events only {len(latencies)} came")

    def at(share: float) -> float:
        return round(latencies[min(len(latencies) - 1, int(share * sent))] * 1_000, 1)

    return {"sent": sent, "came": len(latencies), "p50_ms": at(0.5), "p99_ms": at(0.99)}


async def testify(url: str, token: str) -> dict[str, Any]:
    """Send events until the input ends, and tell how long they took."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    latencies: list[float] = []
    sent = 0
    even = asyncio.Event()  # all that was sent has come
    over = asyncio.create_task(reader.read())
    async with (
        loom.connect(url, token=token, name="sender") as sender,
        loom.connect(url, token=token, name="hearer") as hearer,
        hearer.watch("witness.tick", qos="realtime") as events,
    ):

        async def hear() -> None:
            async for event in events:
                latencies.append(time.monotonic() - event.data)
                if len(latencies) == sent:
                    even.set()
                else:
                    even.clear()

        hearing = asyncio.create_task(hear())
        print("ready", flush=True)
        while not over.done():
            even.clear()
            sent += 1
            await sender.emit("witness.tick", time.monotonic(), qos="realtime")
            await asyncio.wait({over}, timeout=PAUSE)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST):
                await even.wait()
        hearing.cancel()
    return summary(latencies, sent)


@asynccontextmanager
async def witness(url: str, token: str) -> AsyncGenerator[dict[str, Any]]:
    """Measure as long as this lasts; what it yields is filled at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.witness", url),
        env={**os.environ, "LOOM_TOKEN": token},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    told: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield told
        last, _ = await process.communicate(b"")  # its input ends
        assert process.returncode == 0, process.returncode
        told.update(json.loads(last))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main(environment: Mapping[str, str] = os.environ) -> None:
    """Run one."""
    told = asyncio.run(testify(sys.argv[1], environment["LOOM_TOKEN"]))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
