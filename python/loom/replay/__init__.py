"""What the log knows afterwards: what happened in a run, why, and whether the code still does it.

``loom.open_log(path)`` opens a data directory for reading; it writes nothing and does nothing
outside.
"""

from loom.replay.log import Log, RunInfo, open_log
from loom.replay.moments import Moment
from loom.replay.rerun import Rerun, TurnReport
from loom.replay.why import Chain, Link

__all__ = ["Chain", "Link", "Log", "Moment", "Rerun", "RunInfo", "TurnReport", "open_log"]
