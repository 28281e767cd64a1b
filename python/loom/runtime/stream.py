"""An ordered stream of events: what ``ctx.watch`` and ``ctx.join_thread`` read."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from loom.envelope import QOS_CODES, Envelope, Event, QoS, Start, opened, start_code
from loom.errors import InvalidParams, LoomError
from loom.link import LINK_TOPIC, Engine, Link, LinkEvent
from loom.topics import check_filter, matches

_LINK_EVENTS = 16  # that wait for a reader; the newest stay


class Subscription:
    """An async iterator over the events of some filters, from its making on. One reader."""

    def __init__(self, link: Link, filters: Sequence[str], *, qos: QoS) -> None:
        self._link = link
        self._done: Any = None
        self._ready = asyncio.Event()
        self._closed = False
        self._error: LoomError | None = None  # the node has ended the session
        self._filters = tuple(filters)
        self._about_link: deque[LinkEvent] = deque(maxlen=_LINK_EVENTS)
        self._handle = 0  # no engine tells of the link to it
        if self._filters and all(check_filter(one).startswith(LINK_TOPIC) for one in filters):
            link.on_close(-id(self), self._end)  # no handle is negative
            link.on_state(self._on_link)
            return
        try:
            self._handle = link.session.subscribe(filters, QOS_CODES[qos])
        except link.refusal as error:
            raise link.translate(error) from None
        link.on_ready(self._handle, self._ready.set)
        link.on_close(self._handle, self._end)
        link.on_state(self._on_link)

    async def started(self) -> None:
        """Wait until the engine has taken it; call it before anything else is awaited.

        Raises:
            LoomError: it was refused.
        """
        if not self._handle:
            return
        try:
            await self._link.registered(self._handle)
        except BaseException:
            self.close()
            raise

    def _on_link(self, event: LinkEvent) -> None:
        if any(matches(one, event.topic) for one in self._filters):
            self._about_link.append(event)
            self._ready.set()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Event[Any]:
        while True:
            self._ready.clear()
            if self._about_link:
                return _shown(self._about_link.popleft())
            if self._closed:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            if self._handle:
                done, self._done = self._done, None
                item = self._link.session.take(self._handle, done)
                self._link.look()
                if item is not None:
                    self._done = item
                    return _shown(item)
            await self._ready.wait()

    @property
    def lost(self) -> int:
        """How many events it has lost so far."""
        if self._closed or not self._handle:
            return 0
        return self._link.session.lost(self._handle)

    def close(self) -> None:
        """Stop listening. The reader, if one waits, ends."""
        if not self._closed:
            self._closed = True
            self._link.off_state(self._on_link)
            if self._handle:
                self._link.remove(self._handle)
            self._ready.set()

    def _end(self) -> None:
        self._closed = True
        if self._handle:  # who hears of the link alone was told of its end as an event
            self._error = self._link.error
        self._link.off_state(self._on_link)
        self._ready.set()


class FromLog:
    """An async iterator over durable events from a place in the log on, then over all that come.

    It listens from its making on, and reads the log until it has come to what it hears. What it
    hears and has read is skipped; when it has lost some of what it hears, it reads them.
    """

    def __init__(
        self,
        engine: Engine,
        namespace: str,
        live: Subscription,
        filters: Sequence[str],
        start: Start,
    ) -> None:
        self._engine = engine
        self._namespace = namespace
        self._live = live
        self._filters = filters
        self._next: str | int = start_code(start)
        self._last = ""  # the position of the last durable event given
        self._lost = -1  # how many had been lost when the log was read: -1, it was not yet
        self._read: deque[Envelope] = deque()

    def __aiter__(self) -> "FromLog":
        return self

    async def __anext__(self) -> Event[Any]:
        while True:
            while self._read:
                item = self._read.popleft()
                if self._is_new(item):
                    return _shown(item)
            if self._live.lost != self._lost and not await self._catch_up():
                continue
            if self._read:
                continue
            event = await anext(self._live)
            if event.position is None:
                return event
            # where some were lost, others are missing before it: it will be read with them
            if self._live.lost == self._lost and self._is_new(event.envelope):
                return event

    def _is_new(self, item: Envelope) -> bool:
        """Whether a durable event comes behind those that were given; then it was given."""
        position = item.position or ""
        if position <= self._last:
            return False
        self._last = position
        return True

    async def _catch_up(self) -> bool:
        """Read on; tell whether that was the end, behind which the stream goes on."""
        lost = self._live.lost
        items, self._next, at_end = await self._engine.read(
            self._namespace, self._filters, self._next
        )
        self._read.extend(items)
        if at_end:
            self._lost = lost  # what is lost from here on is read again
        return at_end

    def close(self) -> None:
        """Stop listening. The reader, if one waits, ends."""
        self._live.close()


def _shown(item: Envelope) -> Event[Any]:
    try:
        return opened(item)
    except InvalidParams:  # one bad payload must not end who watches
        return Event(item, item.payload)
