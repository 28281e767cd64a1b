"""How a link stands, and the event that tells of it.

A link that is lost cannot hear of that from its node: the event is made here, and reaches those in
this process who listen.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from loom.codec import encode
from loom.envelope import Position, Refusal
from loom.errors import CODES

LinkState: TypeAlias = Literal["connecting", "up", "lost", "closed"]
"""It dials for the first time; it carries; it dials again, and what is sent waits; it is over."""

TOPIC: Final = "loom.link."


class LinkEvent:
    """An event on ``loom.link.{state}``: an Envelope that no engine has made.

    Its data is ``{"state", "node", "missed_from", "resumed", "reason"}``.
    """

    lease = 0
    content_type = "application/json"
    is_json = True
    correlation_id: str | None = None
    causation_id: str | None = None
    wants_reply = False
    reply_to: str | None = None
    deadline: float | None = None
    ttl_ms: int | None = None
    hop = 0
    qos = 0
    key: str | None = None
    traceparent: str | None = None
    position: Position | None = None
    attempt = 1
    is_durable = False
    streamed = False
    credit = 0
    turn = 0
    effect_id: str | None = None

    def __init__(
        self, state: LinkState, detail: Mapping[str, Any], namespace: str, name: str
    ) -> None:
        self.state: LinkState = state
        self.detail: Mapping[str, Any] = detail
        self.id = self.thread_id = self.run_id = str(uuid.uuid4())
        self.topic = TOPIC + state
        self.payload: bytes = encode(dict(detail))
        self.json: bytes | None = self.payload
        self.namespace = namespace
        self.sender = f"{namespace}/{name}"
        self.time = time.time()
        self.causes: list[str] = []
        self.labels: list[str] = []
        self.headers: dict[str, str] = {}

    def settle(self, how: int, millis: int | None, reason: str | None, /) -> Refusal | None:
        """Refuse: nothing is redelivered of what no log has."""
        return (
            CODES["INVALID_PARAMS"],
            f"{self.topic} is not durable: nothing is to be said of it",
            "event",
            None,
            None,
            None,
        )
