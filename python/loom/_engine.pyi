"""The compiled engine: a dozen names, conversion and no policy.

Only ``loom.link`` imports this module. Rust never calls Python: Python offers and drains, and ``Session.fd``
says when. Every method is synchronous, bounded, never blocks, and belongs to the thread that runs the session's loop.
Codes are the numbers of ``spec/errors.toml``; times are seconds as floats; ids of events are UUIDv7 strings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, final

from loom.envelope import Position, Refusal

__all__ = [
    "NOTICE_ACCEPTED",
    "NOTICE_ANSWER",
    "NOTICE_CANCEL",
    "NOTICE_CHUNK",
    "NOTICE_CREDIT",
    "NOTICE_DUE",
    "NOTICE_LINK",
    "NOTICE_OUTCOME",
    "NOTICE_PROBE",
    "NOTICE_READY",
    "NOTICE_REFUSED",
    "NOTICE_REMOVED",
    "Bridge",
    "Delivery",
    "Engine",
    "EngineError",
    "LogReader",
    "LogView",
    "Receipt",
    "RemoteSession",
    "Session",
    "__version__",
    "backup",
    "digest",
    "has_null",
    "holder",
    "namespaces",
    "restore",
]

__version__: Final[str]

# (READY, handle, 0, None): take(handle) has work and its last take() returned None
NOTICE_READY: Final[int]
NOTICE_ANSWER: Final[int]  # (ANSWER, call, 0, Delivery): one reply to a request that is still open
# (OUTCOME, call, code, bytes): the one end of a call or request; code 0 is ok
NOTICE_OUTCOME: Final[int]
NOTICE_CHUNK: Final[int]  # (CHUNK, call, 0, bytes): one chunk of a streamed call
# (CREDIT, lease, total, None): the caller grants `total` chunks in all to this lease
NOTICE_CREDIT: Final[int]
# (CANCEL, lease, code, None): nobody waits for this call any more; stop its work
NOTICE_CANCEL: Final[int]
NOTICE_ACCEPTED: Final[int]  # (ACCEPTED, ticket, 0, Receipt): a parked offer was taken
# (REFUSED, ticket, code, bytes): a parked offer was refused; bytes are its detail
NOTICE_REFUSED: Final[int]
# (DUE, 0, ms, None): something becomes due in so many ms, earlier than was known: tick() then
NOTICE_DUE: Final[int]
# (PROBE, handle, 0, effect id): was this effect done? answer by probed()
NOTICE_PROBE: Final[int]
# (LINK, 0, 0, bytes): how the connection of a remote session stands now, as JSON: {"state": "connecting" | "up" |
# "lost" | "refused", "node": …, "namespace": …, "resumed": …, "missed_from": …, "reason": …}, and for "refused" the
# detail of an error with its number as "code"
NOTICE_LINK: Final[int]
# (REMOVED, handle, code, detail): the engine has removed a registration of this session
NOTICE_REMOVED: Final[int]

_Notice: TypeAlias = tuple[int, int, int, Delivery | Receipt | bytes | str | None]

# (key, thread_id, ttl_ms, content_type, headers, labels, traceparent, causes, id); None where not given
_Options: TypeAlias = tuple[
    str | None,
    str | None,
    int | None,
    str | None,
    Sequence[tuple[str, str]] | None,
    Sequence[str] | None,
    str | None,
    Sequence[str] | None,
    str | None,
]

class EngineError(Exception):
    """What the engine refused. ``args`` is (code, message, field, limit, hint, retry_after)."""

    args: tuple[int, str, str | None, str | None, str | None, float | None]

def digest(
    payload: bytes, /
) -> bytes: ...  # what stands for it where two are compared; b"" for b""
def has_null(
    payload: bytes, /
) -> bool: ...  # whether the bytes hold "null": where NaN may hide in JSON

@final
class Receipt:
    """What a publish was promised."""

    @property
    def id(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def matched(self) -> int | None: ...
    @property
    def position(self) -> Position | None: ...

@final
class Delivery:
    """One event (a turn), one reply, or one invocation of a capability, as the engine holds it."""

    @property
    def lease(self) -> int: ...  # names the turn or the invocation; 0 for a reply
    @property
    def id(self) -> str: ...
    @property
    def topic(self) -> str: ...  # for an invocation, the capability's name
    @property
    def payload(self) -> bytes: ...
    @property
    def content_type(self) -> str: ...
    @property
    def is_json(self) -> bool: ...
    @property
    def json(self) -> bytes | None: ...  # the payload if it is JSON
    @property
    def sender(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def thread_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def correlation_id(self) -> str | None: ...
    @property
    def causation_id(self) -> str | None: ...
    @property
    def causes(self) -> list[str]: ...
    @property
    def wants_reply(self) -> bool: ...
    @property
    def reply_to(self) -> str | None: ...
    @property
    def deadline(self) -> float | None: ...  # on the engine's monotonic clock
    @property
    def ttl_ms(self) -> int | None: ...
    @property
    def hop(self) -> int: ...
    @property
    def qos(self) -> int: ...
    @property
    def key(self) -> str | None: ...
    @property
    def time(self) -> float: ...  # wall clock, seconds since the epoch
    @property
    def traceparent(self) -> str | None: ...
    @property
    def labels(self) -> list[str]: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def position(self) -> Position | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def is_durable(self) -> bool: ...  # a turn that is redelivered until it is acknowledged
    # 0 ack, 1 nak (after ms, None: by its attempts), 2 extend the lease, 3 term (a reason); what is
    # refused is returned as the args of an EngineError
    def settle(self, how: int, millis: int | None, reason: str | None, /) -> Refusal | None: ...
    @property
    def turn(self) -> int: ...  # the number of a recorded turn; 0: it is not recorded
    @property
    def streamed(self) -> bool: ...  # an invocation whose caller reads chunks
    @property
    def credit(self) -> int: ...  # chunks granted so far, for a streamed invocation
    @property
    def effect_id(self) -> str | None: ...  # of an invocation that is not pure

@final
class Engine:
    """Event bus, action broker and directory of one process."""

    # data: the data directory, None: the log is in memory. durable: filters; ack: 1 os, 2 disk;
    # record: 0 off, 1 runs, 2 all. Takes the directory's lock.
    def __new__(
        cls,
        *,
        virtual_clock: bool = False,
        seed: int | None = None,
        data: str | None = None,
        durable: Sequence[str] = ...,
        ack: int = 2,
        record: int = 0,
        retention_bytes: int | None = None,
        retention_age_ms: int | None = None,
        retention_idle: int | None = None,
        accept_loss: bool = False,
    ) -> Engine: ...
    # Reads what the log of a namespace holds; waits for the disk. attach() does it where it was not done.
    def open(self, namespace: str) -> None: ...
    # Durable events that match, from "beginning", a position or ms since 1970; where to go on; whether
    # that is the end. Waits for the disk.
    def read(
        self, namespace: str, filters: Sequence[str], start: str | int
    ) -> tuple[list[Delivery], str, bool]: ...
    @property
    def is_logging(self) -> bool: ...  # the log has not answered something yet
    def close(
        self,
    ) -> None: ...  # the log is synced and let go; waits for the disk, not for ever; idempotent
    # is_node: it offers what stands under "loom."
    def attach(self, namespace: str, name: str, *, is_node: bool = False) -> Session: ...
    def sessions(self, namespace: str | None, /) -> bytes: ...  # JSON; None: of all namespaces
    def now(self) -> float: ...  # monotonic seconds
    def wall(self) -> float: ...  # seconds since the epoch
    def advance(self, seconds: float) -> None: ...  # virtual clock only; call tick() afterwards
    def stats(self) -> bytes: ...  # JSON; the shape stands in docs/stats.md
    # JSON: {"balanced": bool, "subscriptions": [...], "gauges": {...}}; walks the queues
    def audit(self) -> bytes: ...
    def routes(self, namespace: str) -> bytes: ...  # JSON: {capability: {provider: weight}}
    # a page of effects behind an id, as JSON, and whether there are more
    def effects(
        self, namespace: str, unknown: bool, after: str | None, /
    ) -> tuple[bytes, bool]: ...
    # one effect as JSON, and its result
    def effect(self, namespace: str, effect: str, /) -> tuple[bytes, bytes | None] | None: ...
    # kind "agent" | "capability"; the registered info with "health" in it
    def directory(self, namespace: str, kind: str) -> list[bytes]: ...
    # Opens the Bridge: TCP addresses ("host:port", port 0: any that is free) and the path of a Unix socket.
    # tls: files with the certificate, its key, and who vouches for clients. names: origins that WebSockets may
    # come from, and further names of the node.
    def serve(
        self,
        tcp: Sequence[str],
        unix: str | None,
        tls: tuple[str, str, str | None] | None,
        names: tuple[Sequence[str], Sequence[str]],
        credentials: Sequence[_Credential],
    ) -> Bridge: ...

# id, SHA-256 of the token, namespace ("*": any), the filters of publish, subscribe, call, provide, observe, admin,
# milliseconds since 1970
_Credential: TypeAlias = tuple[
    str,
    bytes,
    str,
    tuple[
        Sequence[str], Sequence[str], Sequence[str], Sequence[str], Sequence[str], Sequence[str]
    ],
    int | None,
]

@final
class Bridge:
    """What lets other processes attach to an engine; it has a thread of its own."""

    @property
    def addresses(self) -> list[str]: ...  # "host:port", as they are bound
    @property
    def fd(self) -> int: ...  # readable when a session came into a namespace that had none
    def opened(self) -> list[str]: ...  # those namespaces, each once
    def authorize(self, credentials: Sequence[_Credential]) -> None: ...  # ends sessions without
    def stats(self) -> bytes: ...  # JSON; the shape stands in docs/stats.md
    # Takes nothing new, and waits until what is under way has ended; False: it was not in time. Blocks.
    def drain(self, seconds: float) -> bool: ...
    def close(self) -> None: ...  # at once; idempotent

class _Session:  # what both kinds of session have

    @property
    def fd(self) -> int: ...  # readable when another session or thread put something into the inbox
    @property
    # drain() has something; this session's own calls do not write fd
    def pending(self) -> bool: ...
    @property
    def root(self) -> int: ...  # the sender handle of the session itself (its name at attach)
    def register(
        self,
        name: str,
        filters: Sequence[str],
        group: str,
        concurrency: int,
        info: bytes,
        realtime: bool,  # it takes every event as realtime
        # of a new group: "now" (None), "beginning", a position, ms since 1970
        start: str | int | None = None,
        max_deliver: int | None = None,  # None: as the limit says
        exclusive: bool = False,  # a newer agent of that name fences this one
        /,
    ) -> int: ...
    def provide(
        self,
        name: str,
        version: str,
        effect: int,
        concurrency: int,
        info: bytes,
        provider: str,  # the agent or the app that offers it
        probes: bool,  # it can be asked whether an effect of it was done
        /,
    ) -> int: ...
    # what a probe says: 0 done (with its result), 1 not done, 2 it cannot tell, 3 it failed; False: too late
    def probed(self, handle: int, effect: str, verdict: int, result: bytes, /) -> bool: ...
    # settles an unknown effect: done with this result, None: not done. A ticket: wait for ACCEPTED
    def resolve(self, effect: str, result: bytes | None, note: str, /) -> int: ...
    # one ordered stream: watch, join_thread
    def subscribe(self, filters: Sequence[str], qos: int, /) -> int: ...
    def remove(self, handle: int, /) -> None: ...  # a registration, a provider or a subscription
    # 0 up, 1 restarting (its queue fills, nothing is taken), 2 quarantined (it hears nothing)
    def set_state(self, handle: int, state: int, /) -> None: ...
    def lost(self, handle: int, /) -> int: ...  # of an agent or a subscription: events dropped
    # The state of an agent's lane, as its turn leaves it; the schema is hashed. False: the event
    # will be given again, and the state is to be as it was before.
    def keep_state(
        self,
        sender: int,
        turn: Delivery,
        lane: str,
        schema: bytes,
        payload: bytes,
        failed: bool,
        /,
    ) -> bool: ...
    # A value of the memory, None: taken away; until when, in ms since 1970.
    def keep_memory(
        self, sender: int, key: str, payload: bytes | None, until_ms: int | None, /
    ) -> None: ...
    def turns_done(self, handle: int, /) -> int: ...  # of an agent: turns that went well
    # Any publish. An int is a ticket: wait for ACCEPTED or REFUSED.
    def offer(
        self,
        sender: int,
        turn: Delivery | None,
        topic: str,
        payload: bytes,
        qos: int,
        options: _Options | None,
        ack: int | None = None,  # None: as its topic is configured
        /,
    ) -> Receipt | int: ...
    # takes back an offer that waits for room; False: it has been answered
    def withdraw(self, ticket: int, /) -> bool: ...
    # publishes a dead event anew, with other data if given; ACCEPTED or REFUSED of the ticket follows
    def redrive(self, consumer: int, n: int, payload: bytes | None, /) -> int: ...
    def request(
        self,
        sender: int,
        turn: Delivery | None,
        topic: str,
        payload: bytes,
        timeout: float,
        first_k: int,  # 0: as many as there are
        wait: bool,
        options: _Options | None,
        /,
    ) -> int: ...  # the call
    def call(
        self,
        sender: int,
        turn: Delivery | None,
        capability: str,
        payload: bytes,
        timeout: float,
        key: str | None,
        credit: int,  # 0: one result; else streamed with so many chunks granted
        version: str | None,  # None: the newest that somebody can serve
        /,
    ) -> int: ...  # the call
    def cancel(self, call: int, /) -> None: ...
    # absolute number of chunks granted so far
    def grant(self, call: int, total: int, /) -> None: ...
    # ends lease `done` well (0: none), gives the next
    def take(self, handle: int, done: Delivery | None, /) -> Delivery | None: ...
    # False: nobody waits any more
    def reply(self, lease: int, payload: bytes, content_type: str | None, /) -> bool: ...
    def result(self, lease: int, payload: bytes, /) -> bool: ...  # ends an invocation well
    # False: no credit, wait for CREDIT and offer again
    def chunk(self, lease: int, payload: bytes, /) -> bool: ...
    # ends a turn or an invocation with an error
    def fail(self, lease: int, code: int, detail: bytes, /) -> bool: ...
    # loom.log.{level}
    def log(self, sender: int, turn: Delivery | None, level: str, payload: bytes, /) -> None: ...
    # loom.error.{code}
    def report(self, sender: int, turn: Delivery | None, code: int, detail: bytes, /) -> None: ...
    # records a step of a turn: kind, name, what it was asked with, code, microseconds, facts as JSON, result
    def step_done(
        self,
        turn: Delivery,
        kind: str,
        name: str,
        args: bytes,
        code: int,
        micros: int,
        facts: str,
        result: bytes,
        /,
    ) -> None: ...
    def describe(self, handle: int, version: str, source: bytes, /) -> None: ...  # an agent's code
    def drain(self, most: int, /) -> list[_Notice]: ...
    # the loop goes on: its leases of durable turns hold
    def renew(self) -> None: ...
    # it stands still: where, for the error that tells of leases that lapse
    def stalls(self, stack: str, /) -> None: ...
    def tick(self) -> float | None: ...  # ends what is due; seconds until the next deadline
    def close(self) -> None: ...  # removes all registrations, cancels all calls; idempotent

@final
class Session(_Session):
    """One process instance attached to an engine: its registrations, its waiting calls, its inbox."""

    # writes the selection table of a capability, weights by provider; None removes it
    def route(self, capability: str, weights: Sequence[tuple[str, float]] | None, /) -> None: ...
    def states(self, sender: int, /) -> list[tuple[str, bytes]]: ...  # of that agent: lane, payload
    def memories(self) -> list[tuple[str, bytes, int | None]]: ...
    # The usual publish, of JSON, taken at once or not at all. None: nothing was done, because
    # there is no room, or because the payload holds "null": look through the value for NaN, and offer
    # it. It writes this session's own fd where it put something into the inbox.
    def emit(
        self, sender: int, turn: Delivery | None, topic: str, payload: bytes, qos: int, /
    ) -> Receipt | None: ...

@final
class RemoteSession(_Session):
    """A session at a node: it dials, resumes and registers again by itself.

    It has the methods of ``Session`` (``tick`` for deadlines of its own). What changes something at the node returns at
    once: handles and tickets are numbers of one row, and ACCEPTED or REFUSED with that number is the answer. What is
    asked for is a ticket, and the body of its ACCEPTED what a local session returns. Deadlines are in the seconds of
    ``time.monotonic()``.
    """

    # an empty namespace: that of the token
    # now: what time.monotonic() says; keep: seconds that the node keeps it without a connection, 0: as it does
    # trust: files with who vouches for the node, and with the certificate that it is shown and its key; None: the
    # system says who vouches
    def __new__(
        cls,
        url: str,
        token: str,
        name: str,
        namespace: str,
        now: float,
        keep: float,
        trust: tuple[str | None, tuple[str, str] | None] | None,
    ) -> RemoteSession: ...
    # an int: a ticket
    def emit(
        self, sender: int, turn: Delivery | None, topic: str, payload: bytes, qos: int, /
    ) -> Receipt | int | None: ...
    # a ticket
    def route(
        self, capability: str, weights: Sequence[tuple[str, float]] | None, /
    ) -> int: ...
    # of one lane, of one key; None: of all
    def states(self, sender: int, key: str | None, /) -> int: ...
    def memories(self, key: str | None, /) -> int: ...
    def directory(self, kind: str, /) -> int: ...
    def read(self, filters: Sequence[str], start: str | int, /) -> int: ...
    def stats(self) -> bytes: ...  # JSON; the shape stands in docs/stats.md
    # after close(): waits until what was sent has been taken; False: it was not in time. Blocks.
    def join(self, seconds: float, /) -> bool: ...

# Of a log, without an engine; from any thread, and not bounded in time.

@final
class LogView:  # brings the view of a namespace's log, a SQLite file, up to date
    def __new__(cls, data: Path, namespace: str, file: Path) -> LogView: ...
    def catch_up(
        self,
    ) -> tuple[int, bool]: ...  # takes over a portion: its records, and whether it was the last
    @property
    def position(self) -> str | None: ...  # the last that the view holds; None: it is empty

# (what it holds: namespace, oldest position, the one behind the newest, records), files, bytes
_Reported: TypeAlias = tuple[list[tuple[str, int, int, int]], int, int]

def namespaces(data: Path) -> list[str]: ...  # that have a log
def holder(
    data: Path,
) -> tuple[bool, int | None]: ...  # whether an engine has it open, and in which process
def backup(data: Path, to: Path, now_ms: int) -> _Reported: ...
def restore(source: Path, to: Path) -> _Reported: ...

# (kind, epoch, n, head, body) of a record
_Row: TypeAlias = tuple[str, int, int, dict[str, Any], bytes]

@final
class LogReader:
    """Reads a log from outside: beside an engine that runs, or after it has stopped."""

    def __new__(cls, path: Path, /) -> Self: ...
    def refresh(self) -> None: ...  # takes in what was written since
    def namespaces(self) -> list[str]: ...
    def bounds(self, namespace: str, /) -> tuple[int, int]: ...  # the oldest n, and behind the newest
    def number(self, namespace: str, position: str, /) -> int: ...  # n of a position of this log
    # up to `most` records from n on, where to go on, and whether there was no more
    def read(self, namespace: str, start: int, most: int, /) -> tuple[list[_Row], int, bool]: ...
    def run(self, namespace: str, run: str, /) -> list[_Row]: ...  # all records of a run
    def find(self, namespace: str, ids: list[str], /) -> list[_Row]: ...  # events by their ids
    # ids of events that begin or end so, the newest `most` of them
    def alike(self, namespace: str, part: str, most: int, /) -> list[str]: ...
    # id, topic, started and ended in ms, events, turns, calls, errors, agents, missing, open, whole
    def runs(
        self, namespace: str, most: int, /
    ) -> list[
        tuple[str, str | None, int, int, int, int, int, int, list[str], int, int, bool]
    ]: ...
    # states (agent, key, JSON) as they were before n, and the hash of all that is folded, from the
    # newest snapshot on, or anew from the oldest record
    def fold(
        self, namespace: str, until: int | None, anew: bool, /
    ) -> tuple[list[tuple[str, str, bytes]], bytes]: ...
