"""The other side of ``isolation="process"``: a process that runs one function, call after call.

``loom.runtime.isolation`` starts it and talks to it in frames on a socket of its own; standard
output and standard error stay the user's. It knows no engine. It ends when its parent is gone.
"""

import atexit
import contextvars
import importlib
import importlib.util
import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from loom.capabilities import Capability, Terms
from loom.codec import decode, encode
from loom.errors import InvalidParams, LoomError
from loom.limits import KEPT_PAYLOAD_BYTES, WORKER_TERM_MS
from loom.runtime.host import error_detail, error_number
from loom.validation import keywords_of

HEAD: Final = struct.Struct("!BII")  # kind of the frame, number of the call, bytes that follow
LOAD, CALL, READY, BEGUN, RESULT, ERROR, RAISED = range(7)
MAIN: Final = "__main__"  # never loaded under this name: what it guards must not run
STACK_CHARACTERS: Final = 8_000  # of a stack, which goes into the parent's log; the end of it
_NAME_CHARACTERS = 256  # of the name of a type
_PR_SET_PDEATHSIG = 1


def pack(kind: int, number: int, body: bytes = b"") -> bytes:
    """Return a frame; what answers a frame has its number."""
    return HEAD.pack(kind, number, len(body)) + body


def body_of_call(payload: bytes, effect_id: str | None) -> bytes:
    """Return the body of a call's frame; an effect's id is short, its length is one byte."""
    effect = (effect_id or "").encode()
    return bytes([len(effect)]) + effect + payload


def main(fd: int) -> None:
    """Serve the parent at the other end of socket ``fd`` until it is gone."""
    atexit.register(os.killpg, 0, signal.SIGKILL)  # what it started goes with it
    _end_with_parent(fd)
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)  # nor is it for programs that the function starts
    os.register_at_fork(after_in_child=lambda: _leave(channel))
    served = _Served(channel)
    try:
        while True:
            served.answer(*_receive(channel))
    except (EOFError, OSError):
        return


def _leave(channel: socket.socket) -> None:
    """Be a forked child: its parent's calls and its parent's end are not its own."""
    channel.close()
    atexit.unregister(os.killpg)


class _Served:
    """The function, once it is loaded, and what it needs to run."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._process = os.getpid()
        self._capability: Capability[..., Any] | None = None
        self._runner: Any = None

    def answer(self, kind: int, number: int, body: bytes) -> None:
        """Do what a frame asks for, and answer it."""
        self._send(*self._do(kind, number, body), number=number)

    def _send(self, kind: int, body: bytes = b"", *, number: int) -> None:
        """Answer, or end here: a forked child that has come out of the function has no calls."""
        if os.getpid() != self._process:
            os._exit(0)
        self._channel.sendall(pack(kind, number, body))

    def _do(self, kind: int, number: int, body: bytes) -> tuple[int, bytes]:
        """Return the kind and the body of the answer."""
        try:
            if kind == LOAD:
                self._capability = _load(**decode(body))
                return READY, b""
            return RESULT, self._call(number, body)
        except LoomError as error:
            return ERROR, encode([error_number(error), error_detail(error).decode()])
        except BaseException as error:  # noqa: BLE001  the root of user code in this process
            stack = "".join(traceback.format_exception(error))[-STACK_CHARACTERS:]
            name = type(error).__name__[:_NAME_CHARACTERS]
            return RAISED, encode([name, _printable(stack)])
        finally:
            _flush()

    def _call(self, number: int, body: bytes) -> bytes:
        capability = self._capability
        if capability is None:
            raise InvalidParams("the function was not loaded", field="frame")
        start = 1 + body[0]
        keywords = keywords_of(capability, body[start:], body[1:start].decode() or None)
        self._send(BEGUN, number=number)
        result = contextvars.copy_context().run(capability.function, **keywords)
        if capability.is_async:
            result = self._loop().run(result, context=contextvars.copy_context())
        payload = encode(result, "result")
        # Only the engine knows what the log keeps: it refuses what is too large for that.
        if len(payload) > KEPT_PAYLOAD_BYTES:
            raise InvalidParams(
                f"the result has {len(payload)} bytes of at most {KEPT_PAYLOAD_BYTES}",
                field="result",
                limit="kept_payload_bytes",
                hint="return a reference to where it lies",
            )
        return payload

    def _loop(self) -> Any:
        """Return what runs coroutines: one loop, so that what they open can be kept."""
        if self._runner is None:
            import asyncio

            self._runner = asyncio.Runner()
        return self._runner


def _load(*, module: str, file: str, function: str, name: str) -> Capability[..., Any]:
    found: Any = getattr(_import(module, file), function)
    fn: Callable[..., Any] = getattr(found, "fn", found)
    return Capability(fn, Terms(name=name))


def _import(name: str, file: str) -> ModuleType:
    """Import the module by its name if that leads to its file, else from its file."""
    if name == MAIN:
        name = "__loom_main__"
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.origin and _is_same(spec.origin, file):
            return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InvalidParams(f"{file} is not a Python file", field="isolation")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _flush() -> None:
    """Show what was printed: the process may be killed while it waits for its next call."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # the user closed it, or there is none


def _receive(channel: socket.socket) -> tuple[int, int, bytes]:
    kind, number, size = HEAD.unpack(_exactly(channel, HEAD.size))
    return kind, number, _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    """Return ``size`` bytes.

    Raises:
        EOFError: the parent has closed its end.
    """
    read = bytearray()
    while len(read) < size:
        part = channel.recv(size - len(read))
        if not part:
            raise EOFError
        read += part
    return bytes(read)


def _end_with_parent(fd: int) -> None:
    """End this process and its group when the parent is gone, whatever runs then."""
    threading.Thread(target=_watch, args=(fd,), name="loom parent", daemon=True).start()
    if sys.platform == "linux":
        _end_even_without_the_interpreter()


def _watch(fd: int) -> None:
    hangup = select.poll()
    hangup.register(fd, 0)  # no readiness, only the hang-up
    hangup.poll()
    threading.Event().wait(WORKER_TERM_MS / 1000)  # a process without a call ends by itself
    os.killpg(0, signal.SIGKILL)


def _end_even_without_the_interpreter() -> None:
    """Let the kernel end this process when its parent dies.

    The thread above needs the interpreter, which code in C may hold for ever. The kernel sends
    SIGHUP, whose handler is ``alarm``: called with the signal's number, 1, it has SIGALRM end the
    process a second later, when the thread has had its time to end the whole group.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGHUP), ctypes.cast(libc.alarm, ctypes.c_void_p))
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGHUP))
