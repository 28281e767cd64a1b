"""Collaboration: several agents, one result. Functions over the Context, and nothing else.

``fanout`` asks many and takes what is enough; ``fanin`` listens to many until it is enough;
``barrier`` waits until all have come; ``contract_net`` gives a task to the best bidder. What they
send stands in ``spec/collab``, so that members in other languages can take part.
"""

from loom.collab.barrier import Meeting, barrier
from loom.collab.contract import Award, Bid, Decline, Ignored, contract_net
from loom.collab.contractor import Contractor, Proposal
from loom.collab.fanin import Fanin, fanin
from loom.collab.fanout import Fanout, Target, fanout
from loom.collab.partial import Failure, Item, Partial

__all__ = [
    "Award",
    "Bid",
    "Contractor",
    "Decline",
    "Failure",
    "Fanin",
    "Fanout",
    "Ignored",
    "Item",
    "Meeting",
    "Partial",
    "Proposal",
    "Target",
    "barrier",
    "contract_net",
    "fanin",
    "fanout",
]
