"""Runs an app at a node that is made for it: the same apps and the same tests, over a link.

The node is an engine of this process that serves on a free port or a socket; the app knows its url
and its token only. So a test that runs an app in this process runs it over gRPC, WebSocket or a
Unix socket, unchanged, with the clock of the node in its hand.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import loom
from loom.address import Trust
from loom.config import Config, DataDir, load, log_of
from loom.link import Link, Local, open_local
from loom.link.local import Served
from loom.link.remote import Remote, RemoteLink, open_remote
from loom.runtime.running import Running
from loom.runtime.running import running as really_running

_ALL = ([">"], [">"], [">"], [">"], [">"], [">"])
_GONE_SECONDS = 10.0
_POLL = 0.001

Runner = Callable[..., AbstractAsyncContextManager[Running]]


class _Ticked(RemoteLink):
    """A link whose deadlines are those of a node in this process, maybe on a virtual clock."""

    hand: Link

    def tick(self) -> float | None:
        remaining = self.hand.tick()
        super().tick()
        return remaining


class Elsewhere(Remote):
    """A node's engine as a test sees it: over its link, and from behind.

    What waits on the way counts as what waits for the log: it goes on by itself.
    """

    def __init__(self, url: str, token: str, node: Local, served: Served) -> None:
        super().__init__(url, token)
        self.node = node
        self.served = served
        self.clock = node.clock
        self.hand = node.attach("tests", "hand")  # ends what is due at the node

    def attach(self, namespace: str, name: str) -> RemoteLink:
        link = super().attach(namespace, name)
        link.__class__ = _Ticked
        link.hand = self.hand  # pyright: ignore[reportAttributeAccessIssue]
        return link

    @property
    def is_logging(self) -> bool:
        """Whether something is on its way, at the node or between it and the app."""
        return self.node.is_logging or not self._is_even()

    def _is_even(self) -> bool:
        """Whether each end has all that the other has sent, and has nothing to send.

        The node's end is read before and after the other: what has changed in between goes on.
        """
        link = self.link
        if link.state != "up":
            return link.state == "closed"
        before = self._end()
        if self.node.audit()["gauges"]["inbox"] or before is None:
            return False
        own = link.stats()
        frames, end = own["frames"], before["frames"]
        return (
            (frames["sent"], frames["received"]) == (end["received"], end["sent"])
            and not frames["queued"]
            and not end["queued"]
            # a turn that has ended here, and not there yet, holds credit back
            and own["leases"] == before["leases"]
            and before == self._end()
            and not link.session.pending
        )

    def _end(self) -> dict[str, Any] | None:
        """The node's end of the one session, if a connection carries it."""
        ends: list[dict[str, Any]] = self.served.stats()["sessions"]
        return ends[0] if len(ends) == 1 and ends[0]["connected"] else None

    def stats(self) -> dict[str, Any]:
        return self.node.stats()

    def audit(self) -> dict[str, Any]:
        return self.node.audit()


@dataclass
class Way:
    """How the apps of one test are reached, and how many were."""

    link: str
    folder: Path
    uses: int = 0
    engines: dict[str, Elsewhere] = field(default_factory=dict[str, "Elsewhere"])
    unbalanced: list[object] = field(default_factory=list[object])

    @property
    def running(self) -> Runner:
        """What stands for ``loom.runtime.running.running`` in the test."""
        return partial(_running_at_node, self)

    def open(
        self, url: str, token: str, *, keep: float = 0.0, trust: Trust | None = None
    ) -> Remote:
        """Return the node that was made for that url, or really dial."""
        return self.engines.get(url) or open_remote(url, token, keep=keep, trust=trust)

    def url(self, served: Served, socket: Path) -> str:
        """The url of the node over this link."""
        if self.link == "unix":
            return f"unix://{socket}"
        scheme = {"grpc": "loom", "websocket": "ws"}[self.link]
        return f"{scheme}://{served.addresses[0]}"


@asynccontextmanager
async def _running_at_node(
    way: Way,
    app: loom.App,
    *,
    virtual_clock: bool = False,
    seed: int | None = None,
    config: Config | None = None,
    data: DataDir | None = None,
    accept_loss: bool = False,
    url: str | None = None,
    token: str | None = None,
    before_close: Any = None,
    **more: Any,
) -> AsyncGenerator[Running]:
    app.check_idle()
    assert url is None, "a test of all links runs its apps on what it is given"
    settled = load() if config is None else config
    way.uses += 1
    socket = way.folder / f"{way.uses}.sock"
    secret = f"loom_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).digest()
    log = log_of(settled, data)
    node = open_local(virtual=virtual_clock, seed=seed, log=log, accept_loss=accept_loss)
    try:
        served = node.serve(
            bind=["127.0.0.1:0"],
            unix=socket,
            tls=None,
            origins=[],
            hosts=[],
            credentials=[("0a0b0c0d", digest, "*", _ALL, None)],
        )
        engine = Elsewhere(way.url(served, socket), secret, node, served)
        way.engines[engine.url] = engine

        async def audited(run: Running) -> None:
            if before_close is not None:
                await before_close(run)
            audit = node.audit()
            if not audit["balanced"]:
                way.unbalanced.append(audit)

        try:
            started = really_running(
                app,
                config=settled,
                seed=seed,
                url=engine.url,
                token=secret,
                before_close=audited,
                **more,
            )
            async with started as run:
                yield run
            engine.hand.close()
            await _all_gone(node, served)
        finally:
            served.close()
    finally:
        await node.close()


async def _all_gone(node: Local, served: Served) -> None:
    """Wait until the node has let go of all that the app had, and see that nothing is left."""
    async with asyncio.timeout(_GONE_SECONDS):
        while served.stats()["sessions"] or node.is_logging:  # noqa: ASYNC110  nobody tells of it
            await asyncio.sleep(_POLL)
    audit = node.audit()
    assert audit["balanced"], audit
    assert not any(audit["gauges"].values()), audit["gauges"]
