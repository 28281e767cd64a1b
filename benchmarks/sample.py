"""One sample, in a process of its own: ``python -m benchmarks.sample CASE SIDE COUNT``.

Prints its figures as JSON, by the name of the side.
"""

import json
import sys
from collections.abc import Mapping

from benchmarks.model import TOGETHER, Case, NotInstalledError, Sample
from benchmarks.registry import load


def main(arguments: list[str]) -> None:
    """Run one side of one case once, or all of those that are measured together."""
    case_name, side, count = arguments
    print(json.dumps(figures(load(case_name), side, int(count))))


def figures(case: Case, name: str, count: int) -> Mapping[str, Sample | dict[str, str]]:
    """Return the figures of that side, or of all sides; of a missing peer, what is missing."""
    if case.together is not None:
        assert name == TOGETHER
        return case.together.run(count)
    run = next(side.run for side in case.sides if side.name == name)
    assert run is not None
    try:
        return {name: run(count)}
    except NotInstalledError as error:
        return {name: {"missing": str(error)}}


if __name__ == "__main__":
    main(sys.argv[1:])
