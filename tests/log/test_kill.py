"""A process that is killed: what it was promised is there, what it had not done is done later."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, sys
import loom

app = loom.App("shop")
folder, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
heard = open(f"{folder}/heard", "a", buffering=1)
asked = set()
done = asyncio.Event()


@app.agent("ears", topics=["order.>"], concurrency=64)
async def ears(ctx, event):
    heard.write(f"{event.data} {event.attempt}\\n")
    if count and event.data % 7 == 0:
        await asyncio.sleep(3600)


async def main():
    async with app.running(data=f"{folder}/data") as ctx:
        async def one(n):
            await ctx.emit("order.new", n, ack=("disk", "os")[n % 2], key=str(n))
            print(n, flush=True)

        for start in range(first, first + count, 20):
            await asyncio.gather(*(one(n) for n in range(start, start + 20)))
        print("done", flush=True)
        await asyncio.sleep(0 if count == 0 else 3600)


asyncio.run(main())
"""


@pytest.mark.requirement("SDKLOG-REDELIVER")
@pytest.mark.parametrize("acks", [1, 37, 200])
def test_nothing_that_was_acknowledged_is_lost_when_the_process_is_killed(
    acks: int, tmp_path: Path
) -> None:
    script = tmp_path / "shop.py"
    script.write_text(SCRIPT, encoding="utf-8")
    acked: set[int] = set()
    for life in range(2):
        command = [sys.executable, str(script), str(tmp_path), str(life * 1_000), "200"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                for _ in range(acks):
                    line = process.stdout.readline().strip()
                    assert line != "done" or acks == 200
                    acked.add(int(line))
            finally:
                process.kill()
    last = [sys.executable, str(script), str(tmp_path), "9000", "0"]
    subprocess.run(last, check=True, stdout=subprocess.DEVNULL, timeout=60)
    heard = [line.split() for line in (tmp_path / "heard").read_text("utf-8").splitlines()]
    assert len(acked) == 2 * acks
    assert acked <= {int(number) for number, _ in heard}
    attempts: dict[str, list[int]] = {}
    for number, attempt in heard:
        attempts.setdefault(number, []).append(int(attempt))
    # whatever had begun is counted: no attempt is made twice, over three lives
    assert all(counted == sorted(set(counted)) for counted in attempts.values())
    assert acks == 1 or any(len(counted) > 1 for counted in attempts.values())
