"""Prove the Bridge: ``prove_bridge.py PIECE`` for one piece, ``prove_bridge.py page`` for the page.

As ``prove_log.py`` does it, with the trials of ``tests/faults``. SCALE=10 does ten times as much.
"""

import sys
from collections.abc import Mapping, Sequence

from prove_log import ROOT, SCALE, SEED, Piece, main


def trial(kind: str, wanted: int) -> Sequence[str]:
    """Return the command of a trial under faults."""
    return (
        *(sys.executable, "-m", "tests.faults.trials", kind),
        *("--seed", str(SEED), "--wanted", str(wanted)),
    )


PIECES: Mapping[str, Piece] = {
    "cuts-grpc": Piece(
        "connections cut between frames of HTTP/2 or inside them",
        lambda: trial("cuts-grpc", 1_500 * SCALE),
        "cuts",
        1_500,
    ),
    "cuts-websocket": Piece(
        "connections cut between frames of WebSockets or inside them",
        lambda: trial("cuts-websocket", 1_500 * SCALE),
        "cuts",
        1_500,
    ),
    "node-kills": Piece(
        "kills (-9) of a node under load, started again on its log",
        lambda: trial("kills", 200 * SCALE),
        "kills",
        200,
    ),
    "storm": Piece(
        "clients that come back to a node that was killed",
        lambda: trial("storm", 1_000),
        "clients",
        1_000,
    ),
    "half-open": Piece(
        "peers that went silent, one way or both",
        lambda: trial("half-open", 12 * SCALE),
        "peers",
        12,
    ),
    "blocked-loop": Piece(
        "clients whose event loop stood still for 20 s and whose session went on",
        lambda: trial("blocked", SCALE),
        "sessions_kept",
        1,
    ),
}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:], PIECES, "prove-bridge"))
