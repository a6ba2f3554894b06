"""Every state with every verb: the table of docs/conformance.md, written down a second time."""

from __future__ import annotations

import pytest

from zeropod.container.state import State, Verb, move
from zeropod.errors import Code, IllegalTransition, NotFound, ZeropodError

_S = State
_ASLEEP = (_S.SCALING_DOWN, _S.SCALED_DOWN, _S.WAKING)
_SAME = {
    Verb.EXEC: (_S.CREATED, _S.RUNNING, *_ASLEEP),
    Verb.KILL: (_S.CREATED, _S.RUNNING, _S.PAUSED, *_ASLEEP),
    Verb.UPDATE: (_S.CREATED, _S.RUNNING, _S.PAUSED, *_ASLEEP),
    Verb.CHECKPOINT: (_S.RUNNING, _S.PAUSED),
}
_MOVES = {
    (_S.CREATED, Verb.START): _S.RUNNING,
    (_S.RUNNING, Verb.PAUSE): _S.PAUSED,
    (_S.PAUSED, Verb.RESUME): _S.RUNNING,
    (_S.CREATED, Verb.DELETE): _S.DELETED,
    (_S.STOPPED, Verb.DELETE): _S.DELETED,
    (_S.RUNNING, Verb.SCALE_DOWN): _S.SCALING_DOWN,
    (_S.SCALING_DOWN, Verb.ASLEEP): _S.SCALED_DOWN,
    (_S.SCALING_DOWN, Verb.AWAKE): _S.RUNNING,
    (_S.SCALED_DOWN, Verb.RESTORE): _S.WAKING,
    (_S.WAKING, Verb.AWAKE): _S.RUNNING,
    **{(state, Verb.EXIT): _S.STOPPED for state in (_S.CREATED, _S.RUNNING, _S.PAUSED, *_ASLEEP)},
    **{(state, verb): state for verb, states in _SAME.items() for state in states},
}


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("state", State)
def test_every_state_with_every_verb(state: State, verb: Verb) -> None:
    if (state, verb) in _MOVES:
        assert move(state, verb, "c1") is _MOVES[state, verb]
        return
    gone = state is _S.DELETED or verb is Verb.KILL
    with pytest.raises(ZeropodError, match="c1") as refused:
        move(state, verb, "c1")
    assert isinstance(refused.value, NotFound if gone else IllegalTransition)
    assert refused.value.code == (Code.NOT_FOUND if gone else Code.FAILED_PRECONDITION)
