"""Worker processes for a capability with ``isolation="process"``: few, bounded, replaced when dead.

What runs in them may exit, crash, or hold its interpreter for ever: it ends its own call, and the
next one gets another process. ``loom.runtime.worker`` is the other side. Each process leads a group
of its own, and goes with all that it has started.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from typing import Any, Final, cast

from loom.capabilities import Capability
from loom.codec import encode
from loom.errors import Exhausted, InvalidParams, LoomError, ProviderUnavailable
from loom.limits import (
    KEPT_PAYLOAD_BYTES,
    WORKER_IDLE_SECONDS,
    WORKER_PROCESSES,
    WORKER_START_SECONDS,
    WORKER_TERM_MS,
)
from loom.link import error_from_detail
from loom.runtime import worker as frames
from loom.runtime.gauges import Gauges
from loom.runtime.host import Raised, lost

_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from loom.runtime.worker import main; main(int(sys.argv[1]))"
)
_MOST = KEPT_PAYLOAD_BYTES + frames.STACK_CHARACTERS  # bytes of a frame; no longer one is ours
_LAST_READ = 0.2  # seconds that what a dead process has written may take to be read
_REAPED = 1.0  # seconds that killed processes have to end
_logger = logging.getLogger("loom.capability")


class Workers:
    """The processes of one capability."""

    def __init__(self, capability: Capability[..., Any], gauges: Gauges) -> None:
        """Look up where the function stands; nothing is started before it is called.

        Raises:
            InvalidParams: another process could not find the function.
        """
        self.name = capability.name
        self.gauges = gauges
        self.place: bytes = encode(_place_of(capability))
        self._capability = capability
        self._loop = asyncio.get_running_loop()
        self.limit: int = max(1, min(os.cpu_count() or 1, WORKER_PROCESSES))
        self._workers: set[_Worker] = set()  # all that have not ended
        self._idle: list[_Worker] = []
        self._starts: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[_Worker]] = deque()  # at most one for each call at work
        self._closed = False

    async def run(self, payload: bytes, effect_id: str | None) -> bytes:
        """Return the result of one call.

        When the task that waits for it is cancelled, the process is killed.

        Raises:
            LoomError: what the function raised; or its process died or could not be started.
            Raised: the function raised something else.
        """
        self.gauges.workers_busy += 1
        try:
            worker = await self._one()
            try:
                kind, body = await worker.ask(frames.CALL, frames.body_of_call(payload, effect_id))
            except _Died as died:
                if not self._closed:
                    _logger.warning("capability %s lost a worker process: it %s", self.name, died)
                raise lost(
                    self._capability, f"lost its process: it {died}", begun=died.begun
                ) from None
            except BaseException:
                worker.kill()
                raise
            self._let_go(worker)
        finally:
            self.gauges.workers_busy -= 1
        if kind == frames.RESULT:
            return body
        raise _error(kind, body)

    async def close(self) -> None:
        """End all processes, within ``_REAPED`` seconds."""
        self._closed = True
        for start in self._starts:
            start.cancel()
        if self._starts:
            await asyncio.wait(list(self._starts), timeout=_REAPED)
        ending = [worker.ended for worker in self._workers]
        self.abandon()
        if ending:
            await asyncio.wait(ending, timeout=_REAPED)

    def abandon(self) -> None:
        """Kill all processes, and do not wait for their end."""
        self._closed = True
        for worker in list(self._workers):
            worker.kill()

    # -- the pool ---------------------------------------------------------------------------------

    async def _one(self) -> "_Worker":
        """Return a process that is ready and works on nothing."""
        while self._idle:
            worker = self._idle.pop()
            if worker.unpark():
                return worker
        wanted: asyncio.Future[_Worker] = self._loop.create_future()
        self._waiting.append(wanted)
        self._grow()
        try:
            return await wanted
        except asyncio.CancelledError:
            if wanted in self._waiting:
                self._waiting.remove(wanted)
            elif not wanted.cancelled() and wanted.exception() is None:
                self._let_go(wanted.result())
            raise

    def _grow(self) -> None:
        """Start a process for each call that waits and has none on its way, up to the limit.

        Those that are about to end count, until they have ended.
        """
        while len(self._starts) < len(self._waiting) and not self._closed:
            if len(self._workers) + len(self._starts) >= self.limit:
                return
            start = self._loop.create_task(self._start(), name=f"loom start of {self.name}")
            self._starts.add(start)

    async def _start(self) -> None:
        """Start one process for whoever waits first; its failure is theirs, too."""
        worker = _Worker(self)
        try:
            await worker.start()
        except (LoomError, Raised, OSError) as error:
            worker.kill()
            self._starts.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._fail_first(self._not_started(error))
            self._grow()
        except BaseException:
            worker.kill()
            self._starts.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            raise
        else:
            self._starts.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._let_go(worker)

    def _let_go(self, worker: "_Worker") -> None:
        """Give a process that works on nothing to whoever waits first, else park it."""
        if self._closed:
            worker.kill()
            return
        if not worker.unpark():
            return  # when it has ended, another is started for whoever waits
        while self._waiting:
            wanted = self._waiting.popleft()
            if not wanted.done():
                wanted.set_result(worker)
                return
        self._idle.append(worker)
        worker.park()

    def _fail_first(self, error: LoomError) -> None:
        while self._waiting:
            wanted = self._waiting.popleft()
            if not wanted.done():
                wanted.set_exception(error)
                return

    def joined(self, worker: "_Worker") -> None:
        """Count a process that has been started."""
        self._workers.add(worker)
        self.gauges.workers_alive += 1
        self.gauges.workers_started += 1

    def left(self, worker: "_Worker", *, killed: bool) -> None:
        """Count a process that has ended."""
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        self.gauges.workers_alive -= 1
        if killed:
            self.gauges.workers_killed += 1
        else:
            self.gauges.workers_died += 1
        self._grow()

    # -- what to say ------------------------------------------------------------------------------

    def _not_started(self, error: Exception) -> LoomError:
        _logger.error("no worker process for capability %s", self.name, exc_info=error)
        why = error.kind if isinstance(error, Raised) else type(error).__name__
        if isinstance(error, LoomError):
            why = error.message
        return ProviderUnavailable(
            f"a worker process for {self.name} could not be started: {why}", who=self.name
        )


class _Died(Exception):
    """A process has ended with a call open. ``begun``: the function had been called."""

    def __init__(self, how: str, *, begun: bool) -> None:
        super().__init__(how)
        self.begun = begun


class _Worker(asyncio.SubprocessProtocol):
    """One process: its socket, the call it works on, its end."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._process: asyncio.SubprocessTransport | None = None
        self._channel: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0  # of what it was asked last; only that it answers
        self._begun = False
        self._killed = False  # by us
        self._is_broken = False  # it sent what nobody asked for
        self._is_ending = False
        self._exited = False
        self.ended: asyncio.Future[None] = self._loop.create_future()

    async def start(self) -> None:
        """Start the process, and wait until it has loaded the function.

        Raises:
            LoomError: it ended before, it took too long, or refused.
            Raised: the module raised.
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await self._loop.subprocess_exec(
                    lambda: self,
                    *(sys.executable, "-c", _BOOT, str(theirs.fileno()), *sys.path),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=None,
                    stderr=None,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            ours.setblocking(False)
            await self._loop.create_connection(lambda: _Channel(self), sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            async with asyncio.timeout(WORKER_START_SECONDS):
                kind, body = await self.ask(frames.LOAD, self._workers.place)
        except _Died as died:
            raise ProviderUnavailable(f"it {died}", hint="standard error may say why") from None
        except TimeoutError:
            raise Exhausted(
                f"it was not ready within {WORKER_START_SECONDS} s", limit="worker_start_seconds"
            ) from None
        if kind != frames.READY:
            raise _error(kind, body)

    async def ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        """Send a frame and return the kind and the body of its answer.

        Raises:
            _Died: the process has ended.
        """
        if self.ended.done() or self._channel is None:
            raise _Died("has ended", begun=False)
        self._begun = False
        self._number = (self._number + 1) % 2**32
        self._answer = self._loop.create_future()
        self._channel.write(frames.pack(kind, self._number, body))
        try:
            return await self._answer
        finally:
            self._answer = None

    def park(self) -> None:
        """Wait for the next call, but not for ever."""
        self._timer = self._loop.call_later(WORKER_IDLE_SECONDS, self.kill)

    def unpark(self) -> bool:
        """Be about to work; False: it has ended, or is about to."""
        if self._is_ending or self._exited:
            return False
        if self._timer is not None:
            self._timer.cancel()
        return True

    def kill(self) -> None:
        """End the process and its group: SIGTERM, and SIGKILL a moment later."""
        if not self._is_ending and self._process is not None and not self._exited:
            self._killed = True
            self._terminate()

    def _terminate(self) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        if self._timer is not None:
            self._timer.cancel()
        self._signal(signal.SIGTERM)
        self._timer = self._loop.call_later(WORKER_TERM_MS / 1000, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.get_pid(), number)
        except (ProcessLookupError, PermissionError):  # the latter: all of the group are zombies
            return

    # -- what the loop tells ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process has been started."""
        self._process = cast("asyncio.SubprocessTransport", transport)
        self._workers.joined(self)

    def process_exited(self) -> None:
        """The process has ended: so must its group, which may still hold the socket."""
        self._exited = True
        self._signal(signal.SIGKILL)
        if self._timer is not None:
            self._timer.cancel()
        if self._channel is None:
            self._end()
        else:
            self._timer = self._loop.call_later(_LAST_READ, self._channel.abort)

    def connected(self, channel: asyncio.Transport) -> None:
        """The socket can be written."""
        self._channel = channel

    def frame(self, kind: int, number: int, body: bytes) -> None:
        """Take a frame of the process; one that answers no open call ends it."""
        if self._is_broken:
            return
        if self._answer is None or self._answer.done() or number != self._number:
            self._is_broken = True
            self.kill()
        elif kind == frames.BEGUN:
            self._begun = True
        else:
            self._answer.set_result((kind, body))

    def disconnected(self) -> None:
        """The process has closed its end, alive or not."""
        self._channel = None
        if self._exited:
            self._end()
        else:
            self._terminate()

    def _end(self) -> None:
        if self.ended.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        self.ended.set_result(None)
        process = self._process
        code = None if process is None else process.get_returncode()
        if process is not None:
            process.close()
        if self._answer is not None and not self._answer.done():
            how = "sent what answers no open call" if self._is_broken else _how(code)
            self._answer.set_exception(_Died(how, begun=self._begun))
        self._workers.left(self, killed=self._killed)


class _Channel(asyncio.Protocol):
    """Cuts what comes from a process into frames."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker
        self._read = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember what to abort."""
        self._transport = cast("asyncio.Transport", transport)
        self._worker.connected(self._transport)

    def data_received(self, data: bytes) -> None:
        """Hand on every frame that is whole; a frame that is too long ends the process."""
        read = self._read
        read += data
        while len(read) >= frames.HEAD.size:
            kind, number, size = frames.HEAD.unpack_from(read)
            if size > _MOST:
                read.clear()
                if self._transport is not None:
                    self._transport.abort()
                return
            end = frames.HEAD.size + size
            if len(read) < end:
                return
            body = bytes(read[frames.HEAD.size : end])
            del read[:end]
            self._worker.frame(kind, number, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the worker."""
        self._worker.disconnected()


def _place_of(capability: Capability[..., Any]) -> dict[str, str]:
    """Return where another process finds the function.

    Raises:
        InvalidParams: there is no file to load it from, or another object has its name there.
    """
    fn, name = capability.fn, capability.fn.__name__
    module = sys.modules.get(fn.__module__)
    file = getattr(module, "__file__", None)
    spec = getattr(module, "__spec__", None)
    found = getattr(module, name, None)
    if file is None or getattr(found, "fn", found) is not fn:
        what = "is in no file" if file is None else f"is not what its module calls {name!r}"
        raise InvalidParams(
            f"{capability.name}: the function {what}, so no other process can load it",
            field="isolation",
            who=capability.name,
            hint="define it at the top level of a module that is a file, under a name of its own",
        )
    return {
        "module": fn.__module__ if spec is None else spec.name,
        "file": os.path.abspath(file),
        "function": name,
        "name": capability.name,
    }


def _error(kind: int, body: bytes) -> Exception:
    from loom.codec import decode

    told = decode(body)
    if kind == frames.ERROR:
        return error_from_detail(told[0], told[1].encode())
    return Raised(*told)


def _how(code: int | None) -> str:
    """Say how a process has ended."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
