"""What a running app takes of an engine, wherever that is."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from loom.envelope import Envelope
from loom.link.clock import Clock
from loom.link.link import Link


class Ledger(Protocol):
    """The effects of a namespace, as the engine keeps them."""

    def page(self, *, unknown: bool, after: str | None) -> tuple[Sequence[Mapping[str, Any]], bool]:
        """Return a page of effects behind an id, and whether there are more."""
        ...

    def find(self, effect: str) -> tuple[Mapping[str, Any], bytes | None] | None:
        """Return what is known of an effect, and its result."""
        ...

    async def settle(self, effect: str, result: bytes | None, note: str) -> None:
        """Say what became of an unknown effect: done with ``result``; None: not done."""
        ...


class RouteTable(Protocol):
    """How calls are shared among the providers of each capability, as the engine keeps it."""

    def write(self, capability: str, weights: dict[str, float] | None) -> None:
        """Set the weights of a capability's providers, None: forget them."""
        ...

    def read(self) -> dict[str, dict[str, float]]:
        """Return all weights by capability and provider."""
        ...


class Engine(Protocol):
    """An engine that an app can run on: of this process, or of a node."""

    @property
    def clock(self) -> Clock:
        """Its time."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether it is in another process: what is asked of it has to travel."""
        ...

    @property
    def has_directory(self) -> bool:
        """Whether its log may outlive the process."""
        ...

    @property
    def is_recording(self) -> bool:
        """Whether it may keep the turns of runs."""
        ...

    @property
    def is_logging(self) -> bool:
        """Whether its log has not answered something yet."""
        ...

    async def open(self, namespace: str) -> None:
        """Open the log of a namespace.

        Raises:
            LoomError: it cannot be opened.
        """
        ...

    def attach(self, namespace: str, name: str) -> Link:
        """Return a link with a session of its own, for the event loop that runs now."""
        ...

    async def read(
        self, namespace: str, filters: Sequence[str], start: str | int
    ) -> tuple[Sequence[Envelope], str, bool]:
        """Read durable events: some of them, where to go on, and whether there were no more."""
        ...

    async def directory(self, namespace: str, kind: str) -> Sequence[bytes]:
        """Return what is registered: ``kind`` is "agent" or "capability"."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return its counters, as far as they are known here."""
        ...

    def ledger(self, link: Link, namespace: str) -> Ledger:
        """Return the effects of a namespace, to be settled through ``link``."""
        ...

    def routes(self, link: Link, namespace: str) -> RouteTable:
        """Return the selection table of a namespace, to be written through ``link``."""
        ...

    async def close(self) -> None:
        """Let it go: what was sent is there, within a bound."""
        ...
