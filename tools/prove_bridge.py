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


def of_partitions() -> str | None:
    """Say what is missing for partitions."""
    from tests.faults import partition

    return partition.missing()


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
    "cuts-javascript": Piece(
        "connections of clients in JavaScript cut between frames or inside them",
        lambda: trial("cuts-javascript", 500 * SCALE),
        "cuts",
        500,
    ),
    "node-kills": Piece(
        "kills (-9) of a node under load, started again on its log",
        lambda: trial("kills", 200 * SCALE),
        "kills",
        200,
    ),
    "node-kills-javascript": Piece(
        "kills (-9) of a node whose clients are in JavaScript",
        lambda: trial("kills-javascript", 40 * SCALE),
        "kills",
        40,
    ),
    "floods": Piece(
        "floods and packets that are too large or too deep, with and without a credential",
        lambda: trial("hostile", 2_000 * SCALE),
        "attacks",
        2_000,
    ),
    "slow-readers": Piece(
        "clients that read nothing while all is sent to them",
        lambda: trial("slow-readers", 20 * SCALE),
        "readers",
        20,
    ),
    "partitions": Piece(
        "partitions and loss between two network namespaces, by nftables",
        lambda: (
            *(sys.executable, "-m", "tests.faults.partition"),
            *("--seed", str(SEED), "--wanted", str(50 * SCALE)),
        ),
        "partitions",
        50,
        of_partitions,
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
