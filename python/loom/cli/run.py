"""``loom run``: an app in this process, its events on the terminal."""

import asyncio
import inspect
import logging
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

from rich.console import Console

from loom.app import App
from loom.cli.asked import Where
from loom.cli.show import (
    EventLines,
    counted,
    event_record,
    figures,
    print_figures,
    print_json,
    short_id,
)
from loom.cli.target import load_target
from loom.cli.workers import at_node, working
from loom.codec import decode, encode
from loom.context import Context
from loom.envelope import Event
from loom.errors import InvalidParams
from loom.runtime.running import Running, running
from loom.runtime.stream import Subscription

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_NAMES = ("loom", "loomos")
_MAIN_TAKES = 2  # the context and the arguments
_Main = Callable[[Context[Any], list[str]], Awaitable[Any]]


class Shown(NamedTuple):
    """What of a run is shown, and how."""

    as_json: bool
    quiet: bool


def run_target(
    target: str | None,
    args: list[str],
    shown: Shown,
    where: Where,
    *,
    accept_loss: bool,
    workers: int,
) -> int:
    """Run the app, in ``workers`` processes or (0) in this one; return the exit code."""
    app, module = load_target(target)
    main = _main_of(module)
    if args and main is None:
        raise InvalidParams(
            f"{target} takes no arguments",
            field="args",
            hint="add `async def main(ctx, args)` to the module, or leave them out",
        )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    node, data = where.node, where.data
    view = _View(as_json=shown.as_json, quiet=shown.quiet, data=data)
    stop = _Stop(view.stopping)
    with asyncio.Runner() as runner:
        try:
            if workers:
                runner.run(_share(target, workers, app, main, args, view, stop, where))
            else:
                started = partial(running, app, data=data, url=node, accept_loss=accept_loss)
                runner.run(_run(started, app, main, args, view, stop))
        except asyncio.CancelledError:
            if not stop.exit_code:
                raise
    return stop.exit_code


def _main_of(module: ModuleType) -> _Main | None:
    """Return the module's ``async def main(ctx, args)``; a ``main`` of another kind is not ours."""
    main = getattr(module, "main", None)
    if not inspect.isfunction(main):
        return None
    wanted = "write `async def main(ctx: loom.Context, args: list[str])`"
    takes = len(inspect.signature(main).parameters)
    if inspect.iscoroutinefunction(main) and takes == _MAIN_TAKES:
        return cast("_Main", main)
    if inspect.iscoroutinefunction(main) or takes == _MAIN_TAKES:
        raise InvalidParams(
            f"main{inspect.signature(main)} is not what can be run", field="main", hint=wanted
        )
    return None


class _View:
    """Where events, the result and the figures go."""

    def __init__(self, *, as_json: bool, quiet: bool, data: str | None) -> None:
        self._data = data
        self._ids: tuple[str, str] | None = None  # of the first run, and of its newest event
        self._as_json = as_json
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._lines = EventLines(self._console)
        self._events = 0

    def event(self, event: Event[Any]) -> None:
        """Show one event."""
        if not event.topic.startswith("loom."):
            self._events += 1
            run = event.run_id if self._ids is None else self._ids[0]
            if run == event.run_id:
                self._ids = (run, event.id)
        if self._quiet:
            return
        if self._as_json:
            print_json(event_record(event))
        else:
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

    def shared(self, count: int) -> None:
        """Say that the app is in several processes."""
        if not self._quiet and not self._as_json:
            told = counted(count, "worker is ready", "workers are ready")
            self._console.print(f"{told}.", style="dim", highlight=False)

    def stopping(self) -> None:
        """Say that the first Ctrl-C was heard."""
        if not self._quiet and not self._as_json:
            self._console.print("stopping; Ctrl-C again ends it at once", style="dim")

    def result(self, value: Any) -> None:
        """Print what ``main`` returned."""
        if value is None:
            return
        if self._as_json:
            print_json({"type": "result", "result": decode(encode(value, field="result"))})
        else:
            shown = _wrapped(str(value)) if sys.stdout.isatty() else str(value)
            sys.stdout.write(f"{shown}\n")
            sys.stdout.flush()

    def figures(self, stats: dict[str, Any] | None, seconds: float) -> None:
        """Print the figures of the run; None: they are the node's."""
        if stats is None:
            return
        told = figures(stats, self._events, seconds)
        if self._as_json and not self._quiet:
            print_json(told)
        elif not self._quiet:
            self._console.print()
            print_figures(self._console, told)
            if self._data:
                self._name_log(shlex.quote(self._data))

    def _name_log(self, data: str) -> None:
        """Say how to look into what was kept."""
        words = ["runs", "logs"]
        if self._ids is not None:
            run, event = map(short_id, self._ids)
            words += [f"replay {run}", f"why {event}"]
        self._console.print("\nLook into what was logged:", style="dim", highlight=False)
        for word in words:
            line = f"  {_command()} {word} --data {data}"
            self._console.print(line, style="dim", highlight=False, soft_wrap=True)


def _wrapped(text: str) -> str:
    """Return ``text`` with the lines that are wider than the terminal broken between words."""
    width = shutil.get_terminal_size().columns
    lines = (
        line
        if len(line) <= width
        else textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
    return "\n".join(lines)


def _command() -> str:
    """Return how a person calls this program: its name, or its path where no PATH leads to it."""
    called = Path(sys.argv[0])
    found = shutil.which(called.name)
    if called.name not in _NAMES or (found and called.exists() and called.samefile(found)):
        return _NAMES[0]
    return shlex.quote(sys.argv[0])


async def _run(
    started: Callable[..., AbstractAsyncContextManager[Running]],
    app: App,
    main: _Main | None,
    args: list[str],
    view: _View,
    stop: "_Stop",
) -> None:
    readers: list[tuple[Subscription, asyncio.Task[None]]] = []

    async def listen(run: Running) -> None:
        tap = Subscription(run.link, [">"], qos="batched")
        await tap.started()
        reader = asyncio.create_task(_show_events(tap, view))
        reader.add_done_callback(lambda _: stop.give_up())
        readers.append((tap, reader))

    async def sum_up(run: Running) -> None:
        seconds = time.perf_counter() - begun
        stats = None if run.engine.is_remote else run.engine.stats()
        for tap, reader in readers:
            await asyncio.sleep(0)  # let it show what came last
            tap.close()
            await reader
        view.figures(stats, seconds)

    begun = time.perf_counter()
    with stop:
        async with started(before_start=listen, before_close=sum_up) as run:
            view.started(app)
            if main is None:
                await stop.wait()
            else:
                await _once(main, run.context, args, stop, view)


async def _share(
    target: str | None,
    count: int,
    app: App,
    main: _Main | None,
    args: list[str],
    view: _View,
    stop: "_Stop",
    where: Where,
) -> None:
    """Run the app in ``count`` processes; this one shows events and runs ``main``."""
    async with at_node(where.node, where.data) as (url, token):
        async with working(target, count, url, token) as workers:
            workers.failed.add_done_callback(lambda _: stop.give_up())
            view.shared(count)
            alone = App(app.name, namespace=app.namespace)
            await _run(partial(running, alone, url=url, token=token), app, main, args, view, stop)
        if workers.failed.done():
            raise workers.failed.result()


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

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._asked = asyncio.Event()
        self._number: int | None = None
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
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

    def give_up(self) -> None:
        """End because nobody can be shown anything any more."""
        self._asked.set()

    def _told(self, number: int) -> None:
        if self._number is None:
            self._number = number
            self._tell()
            self._asked.set()
        elif self._task is not None:
            self._task.cancel()
