"""A process of a case that takes several: ``python -m benchmarks.part MODULE FUNCTION ARGUMENT…``.

The function is a coroutine. What it says goes to standard output, a line of JSON each; what it is
told comes from standard input, a number a line, and it ends with that: a sample that is killed
leaves nothing behind.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks.model import Sample
from benchmarks.workload import EVENT, LONGEST, WARM_UP, Tally, check

_ROOT: Final = Path(__file__).resolve().parent.parent
_STOP: Final = 10.0  # seconds in which a process ends


class Part:
    """A process that was started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def said(self) -> Mapping[str, Any]:
        """Return what it says next."""
        output = self.process.stdout
        assert output is not None
        async with asyncio.timeout(LONGEST):
            line = await output.readline()
        check(bool(line), "another process of this case ended early")
        told: Mapping[str, Any] = json.loads(line)
        return told

    async def tell(self, number: int) -> None:
        """Tell it a number."""
        entry = self.process.stdin
        assert entry is not None
        entry.write(b"%d\n" % number)
        await entry.drain()


@asynccontextmanager
async def started(module: str, function: str, *arguments: object) -> AsyncGenerator[Part]:
    """Run a function of a module in a process of its own for the time of the block."""
    command = (sys.executable, "-m", "benchmarks.part", module, function, *map(str, arguments))
    async with running(*command) as part:
        yield part


@asynccontextmanager
async def running(*command: str, **more: str) -> AsyncGenerator[Part]:
    """Run a command for the time of the block."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=_ROOT, env={**os.environ, **more}, stdin=PIPE, stdout=PIPE
    )
    try:
        yield Part(process)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_STOP):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@contextmanager
def environment(**values: str) -> Generator[None]:
    """Have these in the environment, for this process and those that it starts."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


async def measure_rate(
    count: int, hears: Part, send: Callable[[int], Awaitable[object]], *, receivers: int = 1
) -> Sample:
    """Return how many events a second arrived, from the first that is sent to the last handled.

    ``hears`` runs ``tell_phases``. The moments are those of ``perf_counter``, which all processes
    of a machine share.
    """
    await hears.said()
    seconds = 0.0
    for phase in (max(1, count // WARM_UP), count):
        await hears.tell(phase * receivers)
        await hears.said()
        start = perf_counter()
        async with asyncio.timeout(LONGEST):
            await send(phase)
            told = await hears.said()
        check(told["seen"] == phase * receivers, f"{told['seen']} of {phase * receivers} arrived")
        check(told["value"] == EVENT["sequence"], "the handler read something else")
        seconds = told["at"] - start
    return {"rate": count * receivers / seconds}


async def tell_phases(tally: Tally) -> None:
    """Be told how many are to come, and say when the last of them has; again until the end."""
    say(ready=True)
    async for total in numbers():
        tally.reset(total)
        say(waits=total)
        await tally.done.wait()
        say(at=perf_counter(), seen=tally.seen, value=tally.value)


async def stay() -> None:
    """Say that this process is ready, and be there until the one that has started it is gone."""
    say(ready=True)
    async for _ in numbers():
        pass


def say(**told: Any) -> None:
    """Tell the process that has started this one."""
    print(json.dumps(told), flush=True)


async def numbers() -> AsyncGenerator[int]:
    """Yield what this process is told, until the one that has started it is gone."""
    told = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    while line := await told.readline():
        yield int(line)


def main(arguments: list[str]) -> None:
    """Run the function."""
    module, function, *rest = arguments
    asyncio.run(getattr(import_module(module), function)(*rest))


if __name__ == "__main__":
    main(sys.argv[1:])
