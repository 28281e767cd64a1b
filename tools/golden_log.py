"""Makes the golden log: a small data directory that later versions must read and replay the same.

    python tools/golden_log.py tests/log/golden/v1.tar.gz

A virtual clock and a seed make its events; what the app does stands in tests/log/golden/app.py and
must not change. It prints the hashes that tests/log/test_golden.py pins.
"""

import asyncio
import importlib.util
import sys
import tarfile
import tempfile
from pathlib import Path

import loom
from loom.testing import Harness

_APP = Path(__file__).parent.parent / "tests" / "log" / "golden" / "app.py"
_SEED = 7


def load_app() -> loom.App:
    """Return the app of the golden log."""
    spec = importlib.util.spec_from_file_location("golden_app", _APP)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{_APP} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


async def make(data: Path) -> None:
    """Run the app on a log."""
    for life in range(2):  # a log of two lives
        async with Harness(load_app(), data=data, seed=_SEED + life) as harness:
            for number in range(4):
                await harness.ctx.emit(
                    "order.placed", {"number": number}, key=f"customer{number % 2}"
                )
                await harness.idle()
            await harness.ctx.emit("order.kept", {"life": life}, ack="disk")
            await harness.idle()


async def hashes(data: Path) -> list[str]:
    """Return the hash of the states that each run leaves when its handlers are run again."""
    log = loom.open_log(data)
    return [(await log.replay(run.id, agents=load_app())).state for run in log.runs()]


def main() -> None:
    """Write the archive, and print the hashes."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "log"
        asyncio.run(make(data))
        states = asyncio.run(hashes(data))
        with tarfile.open(sys.argv[1], "w:gz") as archive:
            archive.add(data, "log")
    sys.stdout.write("".join(f"{state}\n" for state in states))


if __name__ == "__main__":
    main()
