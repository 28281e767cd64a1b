"""Many trials, two at a time: ``campaign.py KIND --wanted N``, with ``python -m``."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from itertools import count as numbers
from typing import Final, TypeAlias

from tests.log.kill.clients import client_trial
from tests.log.kill.harness import (
    STRACE,
    BrokenPromiseError,
    Count,
    failing_sync,
    fault_trial,
    kill_trial,
    victim,
)
from tests.log.kill.states import state_trial

Trial: TypeAlias = Callable[[int, Count], None]

# What goes on until there were so many of something.
COUNTED: Final[Mapping[str, Callable[[Count], int]]] = {
    "kills": lambda count: count.kills,
    "clients": lambda count: count.kills,
    "states": lambda count: count.states,
}
_WORKERS: Final = 2
_SAY_EACH: Final = 100

TRIALS: Final[dict[str, Trial]] = {
    "kills": kill_trial,
    "faults": fault_trial,
    "syncs": failing_sync,
    "clients": client_trial,
    "states": state_trial,
}


def run(kind: str, first: int, wanted: int) -> Count:
    """Run trials from a seed on until there were so many kills or faults."""
    if kind != "clients":
        victim()  # built once, before two ask for it
    total = Count()
    of = COUNTED.get(kind)
    seeds = numbers(first) if kind in COUNTED else iter(range(first, first + wanted))
    with ThreadPoolExecutor(_WORKERS) as pool:
        running: set[Future[Count]] = set()
        said = 0
        while True:
            while len(running) < _WORKERS and (of is None or of(total) < wanted):
                seed = next(seeds, None)
                if seed is None:
                    break
                running.add(pool.submit(_one, TRIALS[kind], seed))
            if not running:
                return total
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                total.add(future.result())
            if (now := total.kills + total.faults + total.states) // _SAY_EACH > said:
                said = now // _SAY_EACH
                print(f"{now} {kind}, {len(total.failures)} failures", file=sys.stderr, flush=True)


def _one(trial: Trial, seed: int) -> Count:
    count = Count()
    try:
        trial(seed, count)
    except BrokenPromiseError as error:
        count.failures.append(str(error))
    return count


def main() -> None:
    """Run what was asked for; say as JSON what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=TRIALS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wanted", type=int, default=100)
    chosen = parser.parse_args()
    if STRACE is None:
        sys.exit("strace is not installed; make test-deps brings it")
    print(json.dumps(asdict(run(chosen.kind, chosen.seed, chosen.wanted))))


if __name__ == "__main__":
    main()
