"""The phases of a container that scales, and the moves between them.

phase      processes     ports               what moves it on
FINDING    live          the app's           PORTS (known: watch them), REFUSED (cannot be scaled)
UNSCALED   live          the app's           -
AWAKE      live          the app's           IDLE (nothing for the scale-down duration)
DUMPING    being dumped  ours, held          DUMPED, DUMP_FAILED, BUSY (after a pre-dump)
ASLEEP     none          ours, armed         FIRED (a connection, or a request of ours)
WAKING     coming back   ours, then theirs   RESTORED, LOST (for good)
ENDED      none          none                -

ENDED is reached from everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from zeropod.errors import Internal


class Phase(Enum):
    FINDING = "finding its ports"
    UNSCALED = "not scaled"
    AWAKE = "awake"
    DUMPING = "being dumped"
    ASLEEP = "asleep"
    WAKING = "waking"
    ENDED = "ended"


class Move(Enum):
    PORTS = "ports are known"
    REFUSED = "cannot be scaled"
    IDLE = "idle"
    DUMPED = "dumped"
    DUMP_FAILED = "dump failed"
    BUSY = "no longer idle"
    FIRED = "restore fired"
    RESTORED = "restored"
    LOST = "lost"
    END = "ended"


MOVES: Final[Mapping[tuple[Phase, Move], Phase]] = {
    (Phase.FINDING, Move.PORTS): Phase.AWAKE,
    (Phase.FINDING, Move.REFUSED): Phase.UNSCALED,
    (Phase.AWAKE, Move.IDLE): Phase.DUMPING,
    (Phase.DUMPING, Move.DUMPED): Phase.ASLEEP,
    (Phase.DUMPING, Move.DUMP_FAILED): Phase.AWAKE,
    (Phase.DUMPING, Move.BUSY): Phase.AWAKE,
    (Phase.ASLEEP, Move.FIRED): Phase.WAKING,
    (Phase.WAKING, Move.RESTORED): Phase.AWAKE,
    (Phase.WAKING, Move.LOST): Phase.ENDED,
    **{(phase, Move.END): Phase.ENDED for phase in Phase},
}

UP: Final = frozenset({Phase.FINDING, Phase.UNSCALED, Phase.AWAKE})
"""The processes run and nothing is in the way."""


def advance(phase: Phase, what: Move) -> Phase:
    """The phase after ``what``. Raises Internal for a move that the table does not have."""
    after = MOVES.get((phase, what))
    if after is None:
        raise Internal(f"{what.value} while {phase.value}")
    return after
