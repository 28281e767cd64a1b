"""Effects in an app that is killed: ``python -m tests.log.effects_trial --trials N --seed S``.

One durable event asks for one keyed effect: a program outside of the app appends the effect's id to
a file. The app kills itself with SIGKILL at a named point of its first life, and maybe of later
ones; it is started again until the event is done or nobody knows what became of the effect. What a
trial must come to does not follow from what the app says, but from the program's file.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import loom
from loom.errors import Indeterminate
from tests.log.kill.harness import ROOT, BrokenPromiseError, expect

Class = Literal["idempotent", "probeable", "unsafe"]
Point = Literal["before intent", "after intent", "after dispatch", "after commit", "after confirm"]

CLASSES: Final[tuple[Class, ...]] = get_args(Class)
POINTS: Final[tuple[Point, ...]] = get_args(Point)
GRID: Final[list[tuple[Class, Point]]] = [(effect, point) for point in POINTS for effect in CLASSES]
BETWEEN: Final = frozenset({"after intent", "after dispatch", "after commit"})
_KEY: Final = "order-17"
_LONGEST: Final = 30.0  # seconds of one life
_WORKERS: Final = 2
# The tool: it appends a line, unless it is one that knows the ids that it has had.
_BLINDLY: Final = 'printf "%s\\n" "$1" >> "$2"'
_ONCE: Final = f'grep -qxF -- "$1" "$2" 2>/dev/null || {{ {_BLINDLY}; }}'


# -- one life of the app --------------------------------------------------------------------------


def make_app(
    folder: Path, effect: Class, dies: Point | None, ended: asyncio.Event, *, forgets: bool
) -> loom.App:
    """Return the app; it dies at a point of its work, or sets ``ended`` when that is done.

    ``forgets``: the tool of an idempotent capability does not know the ids that it has had.
    """
    app = loom.App("victim")
    commits = folder / "commits"
    program = _ONCE if effect == "idempotent" and not forgets else _BLINDLY

    def die(here: Point) -> None:
        if dies == here:
            os.kill(os.getpid(), signal.SIGKILL)

    @app.capability("count", effect=effect, timeout=10)
    async def count(order: str, effect_id: str = "") -> str:
        die("after dispatch")
        words = ("-c", program, "count", effect_id, str(commits))
        helper = await asyncio.create_subprocess_exec("/bin/sh", *words)
        if await helper.wait():
            raise RuntimeError(f"the tool could not count {order}")
        die("after commit")
        return effect_id

    if effect == "probeable":

        @count.probe
        async def probe(effect_id: str) -> loom.Done[str] | loom.NotDone | None:
            is_done = effect_id in _lines(commits)
            return loom.Done(effect_id) if is_done else loom.NotDone()

        del probe

    @app.agent("clerk", topics=["order.>"], start="beginning")
    async def clerk(ctx: loom.Context[Any], event: loom.Event[str]) -> None:
        die("before intent")
        call = asyncio.ensure_future(ctx.tool(count.bind(event.data), key=event.data))
        if dies == "after intent":
            await asyncio.sleep(0)  # the call is made
            if _intended(app) == "planned":
                die("after intent")
        told = await _end(app, call)
        die("after confirm")
        print(json.dumps(told), flush=True)
        ended.set()

    del clerk
    return app


async def _end(app: loom.App, call: asyncio.Future[str]) -> dict[str, str]:
    """Return what became of the effect, as the call says and, if nobody knows, the list does."""
    try:
        return {"end": "delivered", "effect": await call}
    except Indeterminate:
        for _ in range(500):  # the log is told a moment after the caller
            if found := app.effects.list(unknown=True):
                return {"end": "unknown", "effect": found[0].id}
            await asyncio.sleep(0.01)
        raise BrokenPromiseError("it is not listed as unknown") from None


def _intended(app: loom.App) -> str:
    """Return how the effect stands when it is in the log; as the loop is held up, nobody has it."""
    latest = time.monotonic() + _LONGEST / 2
    while not (found := app.effects.list()) and time.monotonic() < latest:
        time.sleep(0.001)
    return found[0].state if found else "nowhere"


async def live(folder: Path, effect: Class, dies: Point | None, *, forgets: bool) -> None:
    """Publish the event, which is one in all lives, and go on until its turn has ended."""
    ended = asyncio.Event()
    app, data = make_app(folder, effect, dies, ended, forgets=forgets), folder / "data"
    async with app.running(data=data) as ctx:
        await ctx.emit("order.new", _KEY, ack="disk", id=_KEY)
        async with asyncio.timeout(_LONGEST / 2):
            await ended.wait()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


# -- a trial --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Count:
    """What many trials came to."""

    trials: int = 0
    kills: dict[str, int] = field(default_factory=dict[str, int])  # by class and point
    missed: int = 0  # lives that were over before their point
    ends: dict[str, int] = field(default_factory=dict[str, int])  # by class and end
    failures: list[str] = field(default_factory=list[str])

    def add(self, other: "Count") -> None:
        """Add what other trials came to."""
        self.trials += other.trials
        self.missed += other.missed
        self.kills = dict(Counter(self.kills) + Counter(other.kills))
        self.ends = dict(Counter(self.ends) + Counter(other.ends))
        self.failures += other.failures


def plan(number: int, seed: int) -> tuple[Class, list[Point]]:
    """Return the class of a trial and where each of its lives is killed: any 15 have each pair."""
    effect, first = GRID[number % len(GRID)]
    dice = random.Random(f"{seed} {number}")
    later: list[Point] = [dice.choice(POINTS) for _ in range(dice.choice((0, 0, 1, 2)))]
    return effect, [first, *later]


def trial(effect: Class, points: list[Point], count: Count, *, forgets: bool = False) -> None:
    """Let an app live and die until the event is done or the effect is unknown; then look.

    Raises:
        BrokenPromiseError: the effect was done too often, or not, or its end is not told truly.
    """
    name = f"{effect}, killed {', '.join(points)}"
    killed: list[Point] = []
    told: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(prefix="loom-effects-") as place:
        folder = Path(place)
        for point in (*points, None):
            code, told = _life(folder, effect, point, forgets=forgets)
            if code == -signal.SIGKILL and point is not None:
                killed.append(point)
                continue
            expect(code == 0, f"{name}: a life ended with {code}")
            count.missed += point is not None
            break
        commits = _lines(folder / "commits")
    kills = dict(Counter(f"{effect}, {point}" for point in killed))
    end = "nothing" if told is None else str(told["end"])
    count.add(Count(trials=1, kills=kills, ends={f"{effect}, {end}": 1}))
    _judge(name, effect, killed, commits, told)


def _judge(
    name: str, effect: Class, killed: list[Point], commits: list[str], told: dict[str, Any] | None
) -> None:
    expect(len(commits) <= 1, f"{name}: it was done {len(commits)} times")
    expect(told is not None, f"{name}: it came to no end")
    end, which = (told or {}).get("end"), (told or {}).get("effect")
    if end == "unknown":
        expect(effect == "unsafe", f"{name}: it is unknown")
        expect(bool(BETWEEN & set(killed)), f"{name}: it is unknown, and no kill is the reason")
        expect(not commits or commits == [which], f"{name}: {commits} was done, {which} is unknown")
    else:
        expect(commits == [which], f"{name}: {commits} was done, {which} was delivered")
        is_unsafe = effect == "unsafe"
        expect(not is_unsafe or not BETWEEN & set(killed), f"{name}: done again blindly")


def _life(
    folder: Path, effect: Class, point: Point | None, *, forgets: bool
) -> tuple[int, dict[str, Any] | None]:
    words = ["--life", str(folder), effect, point or "-", "forgets" if forgets else "knows"]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.log.effects_trial", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=_LONGEST,
    )
    lines = ran.stdout.splitlines()
    return ran.returncode, json.loads(lines[-1]) if lines else None


def run(trials: int, seed: int) -> Count:
    """Run trials, two at a time."""
    total = Count()

    def one(number: int) -> Count:
        effect, points = plan(number, seed)
        count = Count()
        try:
            trial(effect, points, count)
        except BrokenPromiseError as error:
            count.failures.append(f"trial {number} of seed {seed}: {error}")
        return count

    with ThreadPoolExecutor(_WORKERS) as pool:
        for count in pool.map(one, range(trials)):
            total.add(count)
    return total


def main() -> None:
    """Run what was asked for; say as JSON what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=len(GRID))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--life", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.life is None:
        seen = run(chosen.trials, chosen.seed)
        print(json.dumps(asdict(seen), sort_keys=True))
        sys.exit(bool(seen.failures))
    place, effect, point, memory = chosen.life
    dies = None if point == "-" else point
    asyncio.run(live(Path(place), effect, dies, forgets=memory == "forgets"))


if __name__ == "__main__":
    main()
