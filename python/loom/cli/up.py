"""``loom up``: a node in this process, until Ctrl-C."""

import asyncio
import logging
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from loom.address import find_node
from loom.codec import encode
from loom.config import load
from loom.errors import Conflict, LoomError
from loom.node.node import Node, Plan, hosting

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def plan_of(data: str | None, *, accept_loss: bool = False, **given: Any) -> Plan:
    """Return what the node is to be: the configuration, and before it what was ``given``."""
    config = load()
    named = {name: value for name, value in given.items() if value}
    return Plan(
        config=config,
        data=config.log.dir if data is None else Path(data),
        bridge=replace(config.bridge, **named),
        accept_loss=accept_loss,
    )


def run_node(plan: Plan, *, named: bool, as_json: bool) -> int:
    """Run the node; return the exit code.

    ``named``: it listens where it was told to, or not at all; else on another port where the usual
    one is taken.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with asyncio.Runner() as runner:
        signals = _Signals()
        try:
            runner.run(_run(plan, signals, named=named, as_json=as_json))
        except asyncio.CancelledError:
            if signals.number is None:
                raise
        return 0 if signals.number is None else 128 + signals.number


async def _run(plan: Plan, signals: "_Signals", *, named: bool, as_json: bool) -> None:
    signals.listen()
    try:
        await _host(plan, signals, as_json=as_json)
    except Conflict as error:
        there = find_node(plan.config.runtime)
        data = None if plan.data is None else str(plan.data.absolute())
        if there is None or there.data != data or not there.urls:
            raise
        raise Conflict(
            f"a node of yours has {plan.data}, and listens on {there.urls[0]}",
            field="data",
            hint="`loom run APP --url local` runs at it, `loom drain` ends it; "
            "--data DIR gives another node a directory of its own",
        ) from error
    except LoomError as error:
        if error.field != "bind" or named or plan.config.origins["bridge.bind"] != "default":
            raise
        sys.stderr.write(f"loom: {error.message}; taking another port\n")
        other = replace(plan.bridge, bind=("127.0.0.1:0",))
        await _host(replace(plan, bridge=other), signals, as_json=as_json)


async def _host(plan: Plan, signals: "_Signals", *, as_json: bool) -> None:
    async with hosting(plan) as node:
        _tell(node, as_json=as_json)
        ends = [asyncio.ensure_future(one) for one in (signals.wait(), node.asked_to_end.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if not as_json:
            sys.stderr.write("stopping; Ctrl-C again ends it at once\n")


def _tell(node: Node, *, as_json: bool) -> None:
    told = node.told
    if as_json:
        # what shows tables and colours would stay in memory as long as the node
        sys.stdout.write(encode({"type": "up", **told.as_json}).decode() + "\n")
    else:
        for url in told.urls:
            sys.stdout.write(f"listening on  {url}\n")
        kept = told.data or "in memory: it ends with this process (--data DIR keeps it)"
        token = shlex.quote(told.token_file)
        found = "programs of this user find it:  loom run APP --url local\n"
        if not node.is_found:
            found = (
                "`local` is another node of yours, which runs already; for this one\n"
                f'  export LOOM_URL={shlex.quote(told.urls[0])} LOOM_TOKEN="$(cat {token})"\n'
                "and then:                       loom run APP\n"
            )
        sys.stdout.write(
            f"token in      {token}\n"
            f"log in        {kept}\n"
            "\n"
            f"{found}"
            "a token for somebody else:      loom token create NAME --subscribe 'order.>'\n"
            "Ctrl-C stops it\n"
        )
    sys.stdout.flush()


class _Signals:
    """The first Ctrl-C or SIGTERM asks for an end, a second one ends at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    def listen(self) -> None:
        """Hear them, for the task that runs now."""
        self._task = asyncio.current_task()
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._told, number)

    async def wait(self) -> None:
        """Return when the first has come."""
        await self._asked.wait()

    def _told(self, number: int) -> None:
        if self.number is None:
            self.number = number
            self._asked.set()
        elif self._task is not None:
            self._task.cancel()
