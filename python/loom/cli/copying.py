"""``loom backup``, ``loom restore``, ``loom snapshot``: what is made of a log's files."""

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from shlex import quote
from typing import Final

from loom.cli.asked import Where
from loom.cli.show import counted, end_with, print_json
from loom.config import LogConfig
from loom.errors import Conflict, InvalidParams
from loom.link import open_local
from loom.link.view import Copied, Held, backup, namespaces, restore

_LOOK: Final = 0.5  # seconds between two looks at how far it is


def show_backup(data: Path, to: Path, *, as_json: bool) -> None:
    """Copy the log in ``data`` to the new directory ``to``; check it, and say what is in it."""
    copied = _while_told(to, lambda: backup(data, to))
    _show(copied, f"backed up to {to}", "backup", to, as_json=as_json)
    if not as_json:
        end_with(f"`loom restore {quote(str(to))} DIR` makes a data directory of it")


def show_node_backup(where: Where, name: str, *, as_json: bool) -> None:
    """Let a node copy its log, and say where the copy is and what is in it."""
    told = where.ask("backup", name=name)
    held = [Held(**one) for one in told["namespaces"]]
    copied = Copied(held, told["files"], told["bytes"])
    path = Path(told["path"])
    _show(copied, f"backed up to {path}", "backup", path, as_json=as_json)


def show_restore(source: Path, to: Path, *, as_json: bool) -> None:
    """Make a log of a backup in the new directory ``to``, and say what is in it.

    Raises:
        InvalidParams: ``source`` is no backup.
    """
    try:
        copied = _while_told(to, lambda: restore(source, to))
    except InvalidParams as error:
        hint = "name what `loom backup` has written"
        raise InvalidParams(error.message, field="source", hint=hint) from None
    _show(copied, f"restored to {to}", "restore", to, as_json=as_json)
    if not as_json:
        end_with(f"`loom run APP --data {quote(str(to))}` goes on from there")


def show_snapshot(data: Path, *, as_json: bool) -> None:
    """Keep what the log in ``data`` folds to, so that the next start reads less.

    Raises:
        Conflict: an engine has it open; that takes snapshots by itself.
    """
    there = namespaces(data)
    try:
        asyncio.run(_open_and_close(data, there))
    except Conflict as error:
        hint = "stop the app that has it open; while it runs it takes snapshots by itself"
        raise Conflict(error.message, field="data", hint=hint) from None
    files = {one: sorted((data / one / "snapshots").glob("*.snap")) for one in there}
    for name, snapshots in files.items():
        if as_json:
            print_json({"namespace": name, "snapshots": [str(file) for file in snapshots]})
        else:
            newest = f"the newest is {snapshots[-1]}" if snapshots else "none was needed"
            sys.stdout.write(f"{name}: {newest}\n")


async def _open_and_close(data: Path, there: list[str]) -> None:
    engine = open_local(log=LogConfig(dir=data))
    try:
        for name in there:
            await engine.open(name)
    finally:
        await engine.close()


def _show(copied: Copied, done: str, kind: str, to: Path, *, as_json: bool) -> None:
    if as_json:
        held = [
            {"namespace": one.namespace, "first": one.first, "end": one.end, "records": one.records}
            for one in copied.namespaces
        ]
        told = {"type": kind, "path": str(to), "files": copied.files, "bytes": copied.bytes}
        print_json({**told, "namespaces": held})
        return
    files = counted(copied.files, "file", "files")
    sys.stdout.write(f"{done}: {files}, {copied.bytes:,} bytes, checked\n")
    for one in copied.namespaces:
        records = counted(one.records, "record", "records")
        sys.stdout.write(f"  {one.namespace}: {records}, up to position {one.end}\n")


def _while_told(to: Path, work: Callable[[], Copied]) -> Copied:
    """Do long work, and tell a terminal how far it is; Ctrl-C leaves nothing at ``to``."""
    ended: Future[Copied] = Future()
    # The engine's library cannot be interrupted: its thread ends with the process.
    threading.Thread(target=_run, args=(ended, work), daemon=True).start()
    partial = to.parent / f"{to.name}.{os.getpid()}.partial"
    told = False
    try:
        while not _is_done(ended):
            if sys.stderr.isatty():
                size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
                sys.stderr.write(f"\r{size:,} bytes")
                sys.stderr.flush()
                told = True
        return ended.result()
    except KeyboardInterrupt:
        shutil.rmtree(partial, ignore_errors=True)
        raise SystemExit(130) from None
    finally:
        if told:
            sys.stderr.write("\r\x1b[2K")


def _run(ended: "Future[Copied]", work: Callable[[], Copied]) -> None:
    try:
        ended.set_result(work())
    except BaseException as error:  # noqa: BLE001  the root of a thread
        ended.set_exception(error)


def _is_done(ended: "Future[Copied]") -> bool:
    try:
        ended.exception(_LOOK)
    except TimeoutError:
        return False
    return True
