"""What the members of a barrier or a contract say to each other: ``spec/collab`` as types.

Closed and versioned: a field that is not known, or another version, is refused.
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from loom.limits import BARRIER_MEMBERS, NAME_BYTES, TIMEOUT_MS_MAX

Milliseconds = Annotated[int, Field(ge=1, le=TIMEOUT_MS_MAX)]
Number = Annotated[int, Field(ge=1)]
Members = Annotated[int, Field(ge=1, le=BARRIER_MEMBERS)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_BYTES)]
Text = Annotated[str, Field(max_length=1024)]
Sender = Annotated[str, Field(min_length=1, max_length=2 * NAME_BYTES + 1)]


class Message(BaseModel):
    """One message of version 1."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    v: Annotated[int, Field(ge=1, le=1)]  # not Literal[1], which takes true


class Cfp(Message):
    """A call for proposals: who wants ``task`` done, bids within ``bid_ms``."""

    task: Any
    bid_ms: Milliseconds
    timeout_ms: Milliseconds


class BidMade(Message):
    """What a contractor bids: a score, the higher the better, and what else it offers."""

    score: Annotated[float, Field(allow_inf_nan=False)]
    offer: Any


class Awarded(Message):
    """Who does it, as the number of this award says, within ``timeout_ms``.

    Nobody: the contract is closed, for all who bid.
    """

    award: Number
    winner: Sender | None
    timeout_ms: Milliseconds


class Declined(Message):
    """A contractor does not bid (no ``award``), or cannot do what was awarded to it."""

    award: Number | None
    code: Annotated[str, Field(pattern="^[A-Z_]{1,64}$")]
    message: Text


class Done(Message):
    """What the winner of an award has made."""

    award: Number
    result: Any


class Arrival(Message):
    """A member has come to a barrier of ``n`` and waits for ``timeout_ms``."""

    n: Members
    member: Name | None
    timeout_ms: Milliseconds


class Outcome(Message):
    """How a barrier ended, the same for all who came."""

    n: Members
    members: list[Annotated[str, Field(min_length=1)]]
    complete: bool


def milliseconds(seconds: float) -> int:
    """Return a time as it travels: at least 1, at most what any wait may take."""
    return max(1, min(round(seconds * 1000), TIMEOUT_MS_MAX))
