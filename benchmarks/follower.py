"""Follow a log with its view, in a process of its own: ``python -m benchmarks.follower DIR FILE``.

Prints, after each portion, the moment, the position that the view has reached, and whether that is
the end of the log; ends with its input.
"""

import os
import select
import sys
import time
from pathlib import Path

from loom.link.view import LogView

_PAUSE = 0.05  # seconds between two looks when there is no more


def main(arguments: list[str]) -> None:
    """Follow until nobody is there any more who wants to know."""
    data, file = map(Path, arguments)
    os.nice(10)
    view = LogView(data, "default", file)
    while True:
        _, at_end = view.catch_up()
        print(time.monotonic(), view.position, int(at_end), flush=True)
        ready, _, _ = select.select([sys.stdin], [], [], _PAUSE if at_end else 0)
        if ready:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
