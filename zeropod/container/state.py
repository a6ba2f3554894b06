"""The states of a container and the moves between them.

state          to containerd  process        left by
CREATED        CREATED        waits          start, exit, delete
RUNNING        RUNNING        lives          exit, scale-down, pause
PAUSED         PAUSED         frozen         resume, exit
SCALING_DOWN   RUNNING        being dumped   asleep (dumped), awake (dump failed), exit
SCALED_DOWN    RUNNING        none           restore, exit (ended without a restore)
WAKING         RUNNING        being restored awake, exit (restore failed or killed)
STOPPED        STOPPED        none           delete
DELETED        -              none           -
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from zeropod.errors import IllegalTransition, NotFound


class State(Enum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    SCALING_DOWN = "scaling-down"
    SCALED_DOWN = "scaled-down"
    WAKING = "waking"
    STOPPED = "stopped"
    DELETED = "deleted"


class Verb(Enum):
    START = "start"
    EXEC = "exec in"
    KILL = "kill"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    CHECKPOINT = "checkpoint"
    DELETE = "delete"
    SCALE_DOWN = "scale down"
    ASLEEP = "put to sleep"
    RESTORE = "restore"
    AWAKE = "wake"
    EXIT = "end"


_MOVES: Final[Mapping[tuple[State, Verb], State]] = {
    (State.CREATED, Verb.START): State.RUNNING,
    (State.CREATED, Verb.EXEC): State.CREATED,
    (State.CREATED, Verb.KILL): State.CREATED,
    (State.CREATED, Verb.EXIT): State.STOPPED,
    (State.CREATED, Verb.DELETE): State.DELETED,
    (State.RUNNING, Verb.EXEC): State.RUNNING,
    (State.RUNNING, Verb.KILL): State.RUNNING,
    (State.RUNNING, Verb.EXIT): State.STOPPED,
    (State.RUNNING, Verb.SCALE_DOWN): State.SCALING_DOWN,
    (State.RUNNING, Verb.PAUSE): State.PAUSED,
    (State.PAUSED, Verb.RESUME): State.RUNNING,
    (State.RUNNING, Verb.CHECKPOINT): State.RUNNING,
    (State.PAUSED, Verb.CHECKPOINT): State.PAUSED,
    (State.PAUSED, Verb.KILL): State.PAUSED,
    (State.PAUSED, Verb.EXIT): State.STOPPED,
    **{
        (state, Verb.UPDATE): state
        for state in (
            *(State.CREATED, State.RUNNING, State.PAUSED),
            *(State.SCALING_DOWN, State.SCALED_DOWN, State.WAKING),
        )
    },
    (State.SCALING_DOWN, Verb.EXEC): State.SCALING_DOWN,
    (State.SCALING_DOWN, Verb.KILL): State.SCALING_DOWN,
    (State.SCALING_DOWN, Verb.ASLEEP): State.SCALED_DOWN,
    (State.SCALING_DOWN, Verb.AWAKE): State.RUNNING,
    (State.SCALING_DOWN, Verb.EXIT): State.STOPPED,
    (State.SCALED_DOWN, Verb.EXEC): State.SCALED_DOWN,
    (State.SCALED_DOWN, Verb.KILL): State.SCALED_DOWN,
    (State.SCALED_DOWN, Verb.RESTORE): State.WAKING,
    (State.SCALED_DOWN, Verb.EXIT): State.STOPPED,
    (State.WAKING, Verb.EXEC): State.WAKING,
    (State.WAKING, Verb.KILL): State.WAKING,
    (State.WAKING, Verb.AWAKE): State.RUNNING,
    (State.WAKING, Verb.EXIT): State.STOPPED,
    (State.STOPPED, Verb.DELETE): State.DELETED,
}


def move(state: State, verb: Verb, id: str) -> State:
    """The state after ``verb``.

    Raises:
        NotFound: a kill of what has ended, the code that containerd expects there, and all of what
            is deleted.
        IllegalTransition: every other move that the table does not have.
    """
    after = _MOVES.get((state, verb))
    if after is not None:
        return after
    if state is State.DELETED:
        raise NotFound(f"container {id} not found")
    if verb is Verb.KILL:
        raise NotFound(f"container {id}: process already finished")
    article = "an" if state.value[0] in "aeiou" else "a"
    raise IllegalTransition(f"cannot {verb.value} {article} {state.value} container {id}")
