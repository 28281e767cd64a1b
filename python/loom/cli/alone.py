"""Opening the log of a stopped app for a command that writes to it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from loom.config import LogConfig
from loom.errors import Conflict
from loom.link import Link, Local, open_local
from loom.node.place import Place


@asynccontextmanager
async def alone(place: Place, session: str, hint: str) -> AsyncGenerator[tuple[Local, Link]]:
    """Open an engine on a log that nobody else has open, with a session of this name.

    Raises:
        Conflict: an engine has it open; ``hint`` says what to do.
    """
    try:
        engine = open_local(log=LogConfig(dir=place.data))
    except Conflict as error:
        raise Conflict(error.message, field="data", hint=hint) from None
    try:
        await engine.open(place.namespace)
        link = engine.attach(place.namespace, session)
        try:
            yield engine, link
        finally:
            link.close()
    finally:
        await engine.close()
