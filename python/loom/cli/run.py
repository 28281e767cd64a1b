"""``loom run``: an app in this process, its events on the terminal."""

import asyncio
import inspect
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, cast

from rich.console import Console

from loom.app import App
from loom.cli.show import EventLines, counted, event_record, figures, print_figures, print_json
from loom.cli.target import load_target
from loom.codec import decode, encode
from loom.context import Context
from loom.envelope import Event
from loom.errors import InvalidParams
from loom.runtime.running import Running, running
from loom.runtime.stream import Subscription

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_Main = Callable[[Context[Any], list[str]], Awaitable[Any]]


def run_target(target: str | None, args: list[str], *, as_json: bool, quiet: bool) -> int:
    """Run the app; return the exit code."""
    app, module = load_target(target)
    main = _main_of(module)
    if args and main is None:
        raise InvalidParams(
            f"{target} takes no arguments",
            field="args",
            hint="add `async def main(ctx, args)` to the module, or leave them out",
        )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    view = _View(as_json=as_json, quiet=quiet)
    with asyncio.Runner() as runner:
        return runner.run(_run(app, main, args, view))


def _main_of(module: ModuleType) -> _Main | None:
    main = getattr(module, "main", None)
    return cast("_Main", main) if inspect.iscoroutinefunction(main) else None


class _View:
    """Where events, the result and the figures go."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._lines = EventLines(self._console)
        self._events = 0

    def event(self, event: Event[Any]) -> None:
        """Show one event, unless it is the directory's book-keeping."""
        if not event.topic.startswith("loom."):
            self._events += 1
        if self._quiet:
            return
        if self._as_json:
            print_json(event_record(event))
        elif not event.topic.startswith("loom.directory."):
            self._lines.show(event)

    def started(self, app: App) -> None:
        """Say that the app runs and how it ends."""
        if not self._quiet and not self._as_json:
            self._console.print(
                f"{app.name} runs: {counted(len(app.agents), 'agent', 'agents')}, "
                f"{counted(len(app.capabilities), 'capability', 'capabilities')}. "
                "Ctrl-C stops it.",
                style="dim",
                highlight=False,
            )

    def result(self, value: Any) -> None:
        """Print what ``main`` returned."""
        if value is None:
            return
        if self._as_json:
            print_json({"type": "result", "result": decode(encode(value, field="result"))})
        else:
            sys.stdout.write(f"{value}\n")
            sys.stdout.flush()

    def figures(self, stats: dict[str, Any], seconds: float) -> None:
        """Print the figures of the run."""
        told = figures(stats, self._events, seconds)
        if self._as_json and not self._quiet:
            print_json(told)
        elif not self._quiet:
            self._console.print()
            print_figures(self._console, told)


async def _run(app: App, main: _Main | None, args: list[str], view: _View) -> int:
    stop = _Stop()
    readers: list[tuple[Subscription, asyncio.Task[None]]] = []

    def listen(run: Running) -> None:
        tap = Subscription(run.link, [">"], qos="batched")
        readers.append((tap, asyncio.create_task(_show_events(tap, view))))

    begun = time.perf_counter()
    with stop:
        async with running(app, before_start=listen) as run:
            view.started(app)
            if main is None:
                await stop.wait()
            else:
                await _once(main, run.context, args, stop, view)
            await run.finish()
            stats = run.engine.stats()
            seconds = time.perf_counter() - begun
            for tap, reader in readers:
                tap.close()
                await reader
            view.figures(stats, seconds)
    return stop.exit_code


async def _once(
    main: _Main, ctx: Context[Any], args: list[str], stop: "_Stop", view: _View
) -> None:
    work = asyncio.ensure_future(main(ctx, args))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            view.result(work.result())
    finally:
        for task in (work, stopped):
            task.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)


async def _show_events(tap: Subscription, view: _View) -> None:
    async for event in tap:
        view.event(event)


class _Stop:
    """The first Ctrl-C or SIGTERM asks for an end, a second one ends at once."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._number: int | None = None
        self._task = asyncio.current_task()

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._told, number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    @property
    def exit_code(self) -> int:
        """0, or 128 plus the signal's number."""
        return 0 if self._number is None else 128 + self._number

    async def wait(self) -> None:
        """Return when somebody has asked for an end."""
        await self._asked.wait()

    def _told(self, number: int) -> None:
        if self._number is None:
            self._number = number
            self._asked.set()
            return
        raise SystemExit(128 + number)
