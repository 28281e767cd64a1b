"""The one door to the engine: nothing else imports ``loom._engine``."""

from loom.link.clock import Clock, SystemClock, VirtualClock
from loom.link.local import Link, Local, error_from_detail, open_local

__all__ = [
    "Clock",
    "Link",
    "Local",
    "SystemClock",
    "VirtualClock",
    "error_from_detail",
    "open_local",
]
