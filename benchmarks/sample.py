"""One sample of one side, in a process of its own: ``python -m benchmarks.sample CASE SIDE COUNT``.

Prints its figures as JSON.
"""

import json
import sys

from benchmarks.model import NotInstalledError
from benchmarks.registry import load


def main(arguments: list[str]) -> None:
    """Run one side of one case once."""
    name, side_name, count = arguments
    side = next(side for side in load(name).sides if side.name == side_name)
    try:
        told = dict(side.run(int(count)))
    except NotInstalledError as error:
        told = {"missing": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
