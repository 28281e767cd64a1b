"""An ordered stream of events: what ``ctx.watch`` and ``ctx.join_thread`` read."""

import asyncio
from collections.abc import Sequence
from typing import Any

from loom.envelope import QOS_CODES, Event, QoS, opened
from loom.errors import InvalidParams
from loom.link import Link


class Subscription:
    """An async iterator over the events of some filters, from its making on. One reader."""

    def __init__(self, link: Link, filters: Sequence[str], *, qos: QoS) -> None:
        self._link = link
        self._done: Any = None
        self._ready = asyncio.Event()
        self._closed = False
        try:
            self._handle = link.session.subscribe(filters, QOS_CODES[qos])
        except link.refusal as error:
            raise link.translate(error) from None
        link.on_ready(self._handle, self._ready.set)
        link.on_close(self._handle, self._end)

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Event[Any]:
        while not self._closed:
            self._ready.clear()
            done, self._done = self._done, None
            item = self._link.session.take(self._handle, done)
            self._link.look()
            if item is not None:
                self._done = item
                try:
                    return opened(item)
                except InvalidParams:  # one bad payload must not end who watches
                    return Event(item, item.payload)
            await self._ready.wait()
        raise StopAsyncIteration

    def close(self) -> None:
        """Stop listening. The reader, if one waits, ends."""
        if not self._closed:
            self._closed = True
            self._link.remove(self._handle)
            self._ready.set()

    def _end(self) -> None:
        self._closed = True
        self._ready.set()
