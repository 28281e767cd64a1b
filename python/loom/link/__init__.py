"""The one door to the engine: nothing else imports ``loom._engine``."""

from loom.link.clock import Clock, SystemClock, VirtualClock
from loom.link.engine import Engine, Ledger, RouteTable
from loom.link.link import Link, Parked, error_from_detail, named
from loom.link.local import Local, open_local
from loom.link.reader import Reader, Row, digest, open_reader
from loom.link.remote import open_remote
from loom.link.state import TOPIC as LINK_TOPIC
from loom.link.state import LinkEvent, LinkState

__all__ = [
    "LINK_TOPIC",
    "Clock",
    "Engine",
    "Ledger",
    "Link",
    "LinkEvent",
    "LinkState",
    "Local",
    "Parked",
    "Reader",
    "RouteTable",
    "Row",
    "SystemClock",
    "VirtualClock",
    "digest",
    "error_from_detail",
    "named",
    "open_local",
    "open_reader",
    "open_remote",
]
