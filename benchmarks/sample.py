"""One sample, in a process of its own: ``python -m benchmarks.sample CASE SIDE COUNT``.

Prints its figures as JSON, by the name of the side.
"""

import json
import sys
from collections.abc import Mapping

from benchmarks.model import TOGETHER, NotInstalledError, Sample
from benchmarks.registry import load


def main(arguments: list[str]) -> None:
    """Run one side of one case once, or all that belong together."""
    name, side_name, count = arguments
    case = load(name)
    told: Mapping[str, Sample | dict[str, str]]
    if side_name == TOGETHER and case.together is not None:
        told = case.together(int(count))
    else:
        side = next(side for side in case.sides if side.name == side_name)
        try:
            told = {side_name: side.run(int(count))}
        except NotInstalledError as error:
            told = {side_name: {"missing": str(error)}}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
