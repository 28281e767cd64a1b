"""Who is at a barrier, as far as this process knows: no turn is told that its asker has gone."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

from loom.context import Context, app_of
from loom.errors import DeadlineExceeded
from loom.limits import BARRIER_WAITING


class Stay:
    """One member at a barrier: ``has_gone`` says that it waits no more.

    ``was_late`` says that it went because its time was up. It is woken when it has gone, and by the
    coordinator when the barrier is over.
    """

    def __init__(self) -> None:
        self.has_gone: bool = False
        self.was_late: bool = False
        self._woken: asyncio.Event = asyncio.Event()

    def wake(self) -> None:
        """Let the coordinator look again."""
        self._woken.set()

    def leave(self) -> None:
        """Tell the coordinator that nobody waits any more."""
        self.has_gone = True
        self._woken.set()

    async def woken(self) -> None:
        """Return when there is something to look at."""
        await self._woken.wait()


# By what all contexts of one running app share, and no other app has.
_on_their_way: Final[WeakKeyDictionary[object, dict[str, Stay]]] = WeakKeyDictionary()


@contextmanager
def coming(ctx: Context[Any]) -> Generator[str]:
    """Give the key of an arrival; when the block ends, however it does, its member has gone.

    Who goes before the arrival has been taken stays known until it is. At most ``barrier_waiting``
    of these are kept, for arrivals that nobody takes; of a forgotten one the coordinator does not
    know that it has gone.
    """
    stays = _on_their_way.setdefault(app_of(ctx), {})
    key, stay = str(ctx.uuid()), Stay()
    for old in [k for k, kept in stays.items() if kept.has_gone][: 1 - BARRIER_WAITING]:
        del stays[old]
    stays[key] = stay
    try:
        yield key
    except DeadlineExceeded:
        stay.was_late = True
        raise
    finally:
        stay.leave()


def taken(ctx: Context[Any], key: str | None) -> Stay:
    """Return the stay of an arrival, a new one for a member that this process does not know."""
    stays = _on_their_way.get(app_of(ctx), {})
    return (stays.pop(key, None) if key is not None else None) or Stay()
