"""Functions that run in processes of their own, harmful and harmless, for test_isolation.py."""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel

import loom
from loom.errors import ToolError
from loom.runtime.worker import HEAD, RESULT

app = loom.App("isolated")


class Point(BaseModel):
    x: int
    y: int = 0


@app.capability("add", effect="pure", isolation="process", timeout=30)
def add(a: int, b: int) -> int:
    return a + b


@app.capability("move", effect="pure", isolation="process", timeout=30)
async def move(point: Point, by: int) -> Point:
    await asyncio.sleep(0)
    return Point(x=point.x + by, y=point.y)


@app.capability("raw", effect="pure", isolation="process", timeout=30)
def raw(size: int) -> bytes:
    return b"\xff" * size


@app.capability("pid", effect="pure", isolation="process", timeout=30)
def pid() -> int:
    return os.getpid()


@app.capability("charge", effect="idempotent", isolation="process", timeout=30)
def charge(cents: int, effect_id: str | None = None) -> str | None:
    return effect_id


@app.capability("harm", effect="pure", isolation="process", timeout=30)
def harm(how: str) -> None:
    do_harm(how)


@app.capability("harm.unsafe", effect="unsafe", isolation="process", timeout=30)
async def harm_unsafe(how: str) -> None:
    do_harm(how)


def do_harm(how: str) -> None:
    match how:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "close":
            os.closerange(3, 65_536)
        case "system exit":
            raise SystemExit(3)
        case "raise":
            raise ValueError("a secret: hunter2")
        case "meant":
            raise ToolError("the disk is full", field="disk", hint="delete something", retry=True)
        case "long" | "long name":
            raise_long(how)
        case _:
            return


def raise_long(how: str) -> None:
    if how == "long":
        raise ToolError("\x00" * 5_000_000, hint="h" * 5_000_000, field="\U0001f600" * 9_000)
    raise type("X" * 5_000_000, (Exception,), {})


@app.capability("fork", effect="unsafe", isolation="process", timeout=30)
def fork(number: int, how: str) -> int:
    """Return the number, at half of the numbers with a child that comes out of here as well."""
    if number % 2 == 0 and (os.fork() if how == "os" else ctypes.PyDLL(None).fork()) == 0:
        time.sleep(0.02)
        return -number
    time.sleep(0.02)
    return number


@app.capability("forge", effect="unsafe", isolation="process", timeout=30)
def forge(ahead: int) -> int:
    """Write a result to the parent that has another number than the call, and return another."""
    body = b"-1"
    calls = 2  # the first frame loads the function
    os.write(int(sys.argv[1]), HEAD.pack(RESULT, calls + ahead, len(body)) + body)
    return 1


@app.capability("flood", effect="pure", isolation="process", timeout=30)
def flood(lines: int) -> int:
    for _ in range(lines):
        sys.stdout.write("x" * 99 + "\n")
    return lines


@app.capability("stay", effect="pure", isolation="process", timeout=30)
def stay(how: str, told: str) -> None:
    """Never end, and say in the file ``told`` who is at it."""
    pids = [os.getpid()]
    if how in ("child", "deaf", "orphan"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how in ("child", "orphan"):
        pids.append(subprocess.Popen(["sleep", "600"]).pid)
    partial = Path(told + ".partial")
    partial.write_text(" ".join(map(str, pids)), encoding="utf-8")
    partial.rename(told)
    if how == "orphan":
        os._exit(0)
    if how == "sleep":
        time.sleep(600)
    if how == "holds the interpreter":
        ctypes.PyDLL(None).sleep(600)
    if how == "regex":
        re.match(r"(a+)+$", "a" * 64 + "b")
    while True:
        with contextlib.suppress(BaseException):
            pass
