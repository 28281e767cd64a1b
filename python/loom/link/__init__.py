"""The one door to the engine: nothing else imports ``loom._engine``."""

from loom.link.clock import Clock, SystemClock, VirtualClock
from loom.link.local import Link, Local, error_from_detail, open_local
from loom.link.reader import Reader, Row, digest, open_reader

__all__ = [
    "Clock",
    "Link",
    "Local",
    "Reader",
    "Row",
    "SystemClock",
    "VirtualClock",
    "digest",
    "error_from_detail",
    "open_local",
    "open_reader",
]
