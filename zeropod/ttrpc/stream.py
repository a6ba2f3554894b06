"""Streams of a ttrpc connection, seen from the server: frames in, events out, no sockets.

    state    REQUEST          DATA              DATA|closed       response sent   peer gone
    -        open → OPEN      refuse            refuse            -               -
             open|closed → HALF
    OPEN     refuse           deliver           deliver → HALF    → -             → -
    HALF     refuse           refuse            refuse            → -             → -

OPEN: the peer may still send data on the stream (only a peer that said REMOTE_OPEN in its request
does). HALF: the peer has said all; ours is the answer. A unary call is HALF from its first frame.
A stream id is odd, larger than every one before it, and never used again. Whatever is refused is
answered with a status on that stream and harms no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from zeropod.errors import Code
from zeropod.ttrpc.frame import MAX_PAYLOAD, Flag, Frame, FrameType, Oversized

MAX_STREAMS: Final = 4096


class State(Enum):
    OPEN = "open"
    HALF = "half closed"


@dataclass(frozen=True, slots=True)
class Opened:
    """A request: ``payload`` is an encoded ttrpc.Request. ``streaming`` when data may follow."""

    stream_id: int
    payload: bytes
    streaming: bool


@dataclass(frozen=True, slots=True)
class Data:
    """A message of a stream; ``last`` when the peer sends no more."""

    stream_id: int
    payload: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """To be answered on ``stream_id`` with this status; the stream is not known afterwards."""

    stream_id: int
    code: Code
    message: str


class Streams:
    """The streams of one connection."""

    __slots__ = ("_last", "_states")

    def __init__(self) -> None:
        self._states: dict[int, State] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._states)

    def state(self, stream_id: int) -> State | None:
        return self._states.get(stream_id)

    def receive(self, frame: Frame | Oversized) -> Opened | Data | Refused | None:
        """The event that a frame means; None where it means nothing."""
        if isinstance(frame, Oversized):
            self._states.pop(frame.stream_id, None)
            self._last = max(self._last, frame.stream_id)
            text = f"message length {frame.length} exceeds maximum {MAX_PAYLOAD}"
            return Refused(frame.stream_id, Code.RESOURCE_EXHAUSTED, text)
        if frame.type == FrameType.REQUEST:
            return self._open(frame)
        if frame.type == FrameType.DATA:
            return self._data(frame)
        return None  # a response has no meaning for a server, and unknown types are to be skipped

    def answered(self, stream_id: int) -> bool:
        """Our answer goes out: the stream ends. False if it had ended before."""
        return self._states.pop(stream_id, None) is not None

    def _open(self, frame: Frame) -> Opened | Refused:
        stream_id = frame.stream_id
        if stream_id % 2 == 0:
            return Refused(stream_id, Code.INVALID_ARGUMENT, "stream id of a request must be odd")
        if stream_id in self._states or stream_id <= self._last:
            self._states.pop(stream_id, None)
            return Refused(stream_id, Code.INVALID_ARGUMENT, "stream id cannot be used again")
        self._last = stream_id
        if len(self._states) >= MAX_STREAMS:
            text = f"more than {MAX_STREAMS} calls at once on one connection"
            return Refused(stream_id, Code.RESOURCE_EXHAUSTED, text)
        streaming = bool(frame.flags & Flag.REMOTE_OPEN)
        self._states[stream_id] = State.OPEN if streaming else State.HALF
        return Opened(stream_id, frame.payload, streaming)

    def _data(self, frame: Frame) -> Data | Refused | None:
        stream_id = frame.stream_id
        if self._states.get(stream_id) is not State.OPEN:
            if stream_id not in self._states and stream_id <= self._last:
                return None  # crossed our answer on the way
            self._states.pop(stream_id, None)
            return Refused(stream_id, Code.FAILED_PRECONDITION, "data on a stream that is closed")
        last = bool(frame.flags & Flag.REMOTE_CLOSED)
        if last:
            self._states[stream_id] = State.HALF
        payload = b"" if frame.flags & Flag.NO_DATA else frame.payload
        return Data(stream_id, payload, last)
