"""One worker of ``loom run --workers``: an app at a node, until its parent lets go of it.

``python -m loom.cli.worker FD [TARGET]`` writes to the descriptor FD once all is registered, and
stops when its standard input ends: also when its parent has died.
"""

import asyncio
import logging
import os
import signal
import sys
import threading

from loom.cli.target import load_target
from loom.runtime.running import running

# Seconds for which the node keeps the session of a worker that is gone: its parent is near, and
# what has died does not come back.
_KEEP = 2.0


def main(ready: int, target: str | None) -> int:
    """Run the app at the node that LOOM_URL names; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    app, _ = load_target(target)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, over.set)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when
        threading.Thread(target=_wait_for_end, args=(loop, over), daemon=True).start()
        async with running(app, keep=_KEEP):
            os.write(ready, b"!")
            os.close(ready)
            await over.wait()

    asyncio.run(work())
    return 0


def _wait_for_end(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    while sys.stdin.buffer.read(1):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(over.set)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
