"""An elastic pool of worker tasks: each takes a lease from one handle and runs user code for it.

The reader never awaits user code, and there is no task per event. One worker takes lease after
lease as long as the user's code does not suspend. When it does suspend, control comes back to the
loop, ``_check`` runs there, sees that nobody is about to take, and lets more workers do so,
doubling each time up to the limit. Workers are real tasks that run coroutines from their first step
on, so timeouts and task groups bind to the right task. A worker that has not let go of the loop for
a batch measures it, and makes its batches shorter or longer.

Lost wake-ups: ``take`` that gives None arms the handle in the engine, which then sends one READY;
``_armed`` mirrors that, and a worker parks only after it has set it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context as Variables
from contextvars import copy_context
from typing import Any, Protocol, cast

from loom.codec import CANNOT_DECODE, from_json
from loom.context import Context
from loom.envelope import Envelope, Event
from loom.errors import Internal, LoomError
from loom.limits import TURN_BATCH
from loom.link import Link
from loom.record import Record
from loom.runtime.host import Host

_LONGEST_BATCH = 0.005  # seconds that one worker may keep the loop, after it has learnt how
_LAST_MOMENT = 1.0  # seconds that cancelled user code has to end
_KEPT_IDLE = 2  # parked workers that a pool keeps; more of them end when there is nothing to take

_logger = logging.getLogger("loom")


class Target(Record, eq=False):
    """User code ready to run.

    ``accepts`` is the declared type of its data and ``validate`` what makes it of a payload; None
    where it takes anything.
    """

    handle: Callable[[Context[Any], Event[Any]], Awaitable[Any]]
    accepts: Any = None
    validate: Callable[[bytes], Any] | None = None


class Work(Protocol):
    """What a pool runs: the turns of an agent, or the invocations of a capability."""

    @property
    def host(self) -> Host:
        """Whose Contexts the code gets."""
        ...

    @property
    def only(self) -> Target | None:
        """What takes everything; None where it depends on the topic."""
        ...

    def find(self, topic: str) -> Target:
        """Return what takes this topic. What it raises fails the lease."""
        ...

    def misfit(self, item: Envelope, error: Exception) -> LoomError:
        """Return what to say of data that is not what was declared, or not JSON."""
        ...

    def settle(self, item: Envelope, result: Any) -> None:
        """Do what a result that is not None asks for. What it raises fails the lease."""
        ...

    def cut_off(self) -> LoomError:
        """Return what a lease has come to whose code was cancelled and goes on."""
        ...

    def failed(self, item: Envelope, error: BaseException) -> None:
        """Tell the engine that the lease has failed."""
        ...


class Pool:
    """Worker tasks for one handle: each takes a lease, runs the user's code, and takes the next."""

    def __init__(self, link: Link, handle: int, work: Work, *, limit: int, name: str) -> None:
        self.handle = handle
        self._link = link
        self._work = work
        self._limit = limit
        self.name: str = name
        self._loop = asyncio.get_running_loop()
        self._variables: Variables = copy_context()
        self._workers: set[asyncio.Task[None]] = set()
        self._abandoned: set[asyncio.Task[None]] = set()  # cancelled, and not ended
        self._idle: list[asyncio.Future[None]] = []
        self._armed = False  # the engine will say READY
        self._about_to_take = 0  # workers started, woken or yielding that have not run since
        self._unstarted: dict[asyncio.Task[None], Any] = {}  # and the lease each was given to end
        self._checking = False
        self._ramp = 1
        self._rounds = 0  # turns of the loop in which somebody worked
        self._started = False
        self._stopping = False
        self._quiet = asyncio.Event()

    def start(self) -> None:
        """Let the first worker look for work."""
        self._started = True
        self._link.on_ready(self.handle, self._on_ready)
        self._start_worker()

    @property
    def busy(self) -> int:
        """How many workers are not parked."""
        return len(self._workers) - len(self._idle)

    @property
    def is_quiet(self) -> bool:
        """Whether every worker is parked and the engine had nothing more to take."""
        return not self.busy and (self._armed or not self._started)

    def blocked_workers(self) -> bool:
        """Whether every worker waits for something; for tests that step a virtual clock."""
        return self._about_to_take == 0 and all(waits(task) for task in self._workers)

    async def quiet(self) -> None:
        """Return once the pool is quiet."""
        while not self.is_quiet and self._workers:
            self._quiet.clear()
            await self._quiet.wait()

    def abandon(self) -> None:
        """Cancel what still runs, and start nothing more."""
        self._stopping = True
        for worker in self._workers:
            worker.cancel()

    async def stop(self) -> None:
        """Cancel what still runs, and wait a moment for it to end.

        What does not end is counted, and the engine told that its leases have failed.
        """
        self.abandon()
        if not self._workers:
            return
        _, stubborn = await asyncio.wait(list(self._workers), timeout=_LAST_MOMENT)
        if stubborn:
            _logger.warning("%s: %d tasks go on though cancelled", self.name, len(stubborn))
        for worker in stubborn - self._abandoned:
            self._give_up(worker)

    def _give_up(self, worker: "asyncio.Task[None]") -> None:
        self._abandoned.add(worker)
        self._work.host.services.gauges.abandon_task(worker)
        frame = getattr(worker.get_coro(), "cr_frame", None)
        item = None if frame is None else frame.f_locals.get("item")  # a book would cost each event
        if item is not None:
            self._failed(item, self._work.cut_off())

    # -- waking -----------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        self._armed = False
        self._ramp = 1
        if not self._about_to_take:
            self._let_one_take()

    def _let_one_take(self) -> bool:
        if self._stopping:
            return False
        while self._idle:
            parked = self._idle.pop()
            if not parked.done():
                self._about_to_take += 1
                parked.set_result(None)
                return True
        if len(self._workers) < self._limit:
            self._start_worker()
            return True
        return False

    def _start_worker(self, done: Any = None) -> None:
        self._about_to_take += 1
        worker = self._loop.create_task(
            self._run(done), name=self.name, context=self._variables.copy()
        )
        self._workers.add(worker)
        self._unstarted[worker] = done
        worker.add_done_callback(self._ended)

    def _ended(self, worker: "asyncio.Task[None]") -> None:
        self._workers.discard(worker)
        self._abandoned.discard(worker)
        self._quiet.set()
        if worker in self._unstarted:  # cancelled before its first step
            self._about_to_take -= 1
            done = self._unstarted.pop(worker)
            if done is not None and not self._stopping:
                self._start_worker(done)
        self._look_again()  # user code was cancelled, and its worker with it: others go on
        if worker.cancelled():
            return
        error = worker.exception()
        if error is not None:
            self._loop.call_exception_handler(
                {"message": f"a worker of {self.name} broke", "exception": error, "task": worker}
            )

    def _look_again(self) -> None:
        if not self._checking and not self._stopping:
            self._checking = True
            self._link.next_round(self._check)

    def _check(self) -> None:
        """Runs in the loop while every worker is suspended: more may be needed."""
        self._checking = False
        self._rounds += 1
        if self._armed or self._about_to_take:
            return
        for _ in range(self._ramp):
            if not self._let_one_take():
                return
        self._ramp = min(self._ramp * 2, self._limit)

    # -- working ----------------------------------------------------------------------------------

    async def _run(self, done: Any) -> None:  # noqa: C901  the hot path: a call less for each event
        take, handle, work = self._link.session.take, self.handle, self._work
        host, only, find, settle = work.host, work.only, work.find, work.settle
        handler, validate = (only.handle, only.validate) if only else (_nobody, None)
        link, variables, clock = self._link, self._variables, self._loop.time
        self._about_to_take -= 1
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._unstarted.pop(task, None)
        cancelling = task.cancelling
        batch = TURN_BATCH
        while True:
            began, rounds = clock(), self._rounds
            for _ in range(batch):
                try:
                    item = take(handle, done)
                except link.refusal:
                    if self._stopping:
                        return  # the link was closed before this worker ended
                    raise
                if item is None:
                    done = None
                    self._armed = True
                    link.look()
                    if not self._armed and not self._about_to_take:
                        continue  # there was work before this worker could park: nobody else comes
                    if not await self._park():
                        return
                    began, rounds = clock(), self._rounds
                    continue
                if not self._checking:
                    self._armed = False
                    self._look_again()
                try:
                    if only is None:
                        target = find(item.topic)
                        handler, validate = target.handle, target.validate
                    try:
                        if validate is not None:
                            event: Event[Any] = Event(item, validate(item.payload))
                        elif (payload := item.json) is None:
                            event = Event(item, item.payload)
                        else:
                            event = Event(item, from_json(payload))
                    except (ValueError, *CANNOT_DECODE) as error:
                        raise work.misfit(item, error) from None
                    result = await handler(Context(host, item), event)
                    if result is not None:
                        settle(item, result)
                    done = item
                except BaseException as error:
                    self._failed(item, error)
                    done = None
                    if isinstance(error, asyncio.CancelledError) and cancelling():
                        raise
                try:
                    if copy_context() == variables and not cancelling():
                        continue
                except Exception:  # noqa: BLE001, S110  the user's values cannot be compared
                    pass
                if not self._stopping:
                    self._start_worker(done)  # a fresh one goes on in its place
                return
            if rounds == self._rounds:  # the loop has waited for this batch alone
                spent = max(clock() - began, 1e-9)
                batch = min(TURN_BATCH, max(1, int(batch * _LONGEST_BATCH / spent)))
            self._about_to_take += 1
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not self._stopping:
                    self._start_worker(done)
                raise
            finally:
                self._about_to_take -= 1

    def _failed(self, item: Envelope, error: BaseException) -> None:
        try:
            self._work.failed(item, error)
        except self._link.refusal:
            if not self._stopping:
                raise
        except Exception as untold:  # noqa: BLE001  the text of an error is user code, too
            self._work.failed(item, Internal(f"its error cannot be told: {type(untold).__name__}"))

    async def _park(self) -> bool:
        """Wait for work; False: this worker is one too many and ends."""
        if len(self._idle) >= _KEPT_IDLE:
            return False
        parked: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(parked)
        if not self.busy:
            self._quiet.set()
        try:
            await parked
        except asyncio.CancelledError:
            if parked in self._idle:
                self._idle.remove(parked)
            else:
                self._about_to_take -= 1  # it was woken and cancelled: another one takes
            raise
        self._about_to_take -= 1
        return True


async def _nobody(ctx: Context[Any], event: Event[Any]) -> None:
    """Stands in until a topic has been looked up."""


def waits(task: "asyncio.Task[None]") -> bool:
    """Tell whether a task waits for something that has not come."""
    waiter = getattr(task, "_fut_waiter", None)
    return waiter is not None and not waiter.done()
