"""Frames and streams without sockets: known bytes, every split, every state with every frame."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropod.errors import Code
from zeropod.ttrpc.frame import HEADER, MAX_PAYLOAD, Decoder, Flag, Frame, FrameType, Oversized
from zeropod.ttrpc.stream import MAX_STREAMS, Data, Opened, Refused, State, Streams

frames = st.builds(
    Frame,
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=300),
)


def test_known_bytes() -> None:
    frame = Frame(1, FrameType.REQUEST, 0, b"abc")
    assert frame.encode() == b"\0\0\0\3\0\0\0\1\1\0abc"
    assert list(Decoder().feed(frame.encode())) == [frame]


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_any_split_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(frame.encode() for frame in sent)
    decoder, got, position, turn = Decoder(), [], 0, 0
    while position < len(wire):
        step = cuts[turn % len(cuts)]
        got += decoder.feed(wire[position : position + step])
        position, turn = position + step, turn + 1
    assert got == sent
    assert decoder.held == 0


@given(st.integers(MAX_PAYLOAD + 1, MAX_PAYLOAD + 5000), st.integers(9_000, 70_000), frames)
@settings(max_examples=20)
def test_oversized_frame_is_skipped_and_takes_no_memory(
    length: int, step: int, following: Frame
) -> None:
    decoder, got = Decoder(), []
    wire = HEADER.pack(length, 7, 1, 0) + bytes(length) + following.encode()
    for position in range(0, len(wire), step):
        got += decoder.feed(wire[position : position + step])
        assert decoder.held <= step + HEADER.size + len(following.payload)
    assert got == [Oversized(7, 1, length), following]


def test_too_long_a_payload_is_not_sent() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        Frame(1, FrameType.REQUEST, 0, bytes(MAX_PAYLOAD + 1)).encode()


def request(stream_id: int, flags: int = 0) -> Frame:
    return Frame(stream_id, FrameType.REQUEST, flags, b"r")


def data(stream_id: int, flags: int = 0) -> Frame:
    return Frame(stream_id, FrameType.DATA, flags, b"d")


def in_state(state: State | None) -> Streams:
    streams = Streams()
    if state is State.OPEN:
        streams.receive(request(1, Flag.REMOTE_OPEN))
    elif state is State.HALF:
        streams.receive(request(1))
    assert streams.state(1) is state
    return streams


REUSED = Refused(1, Code.INVALID_ARGUMENT, "stream id cannot be used again")
CLOSED = Refused(1, Code.FAILED_PRECONDITION, "data on a stream that is closed")


@pytest.mark.parametrize(
    ("before", "frame", "event", "after"),
    [
        (None, request(1), Opened(1, b"r", False), State.HALF),
        (None, request(1, Flag.REMOTE_CLOSED), Opened(1, b"r", False), State.HALF),
        (None, request(1, Flag.REMOTE_OPEN), Opened(1, b"r", True), State.OPEN),
        (None, data(1), CLOSED, None),
        (None, Frame(1, FrameType.RESPONSE, 0, b""), None, None),
        (None, Frame(1, 99, 0, b""), None, None),
        (State.OPEN, request(1), REUSED, None),
        (State.OPEN, data(1), Data(1, b"d", False), State.OPEN),
        (State.OPEN, data(1, Flag.REMOTE_CLOSED), Data(1, b"d", True), State.HALF),
        (State.OPEN, data(1, Flag.REMOTE_CLOSED | Flag.NO_DATA), Data(1, b"", True), State.HALF),
        (State.OPEN, Frame(1, FrameType.RESPONSE, 0, b""), None, State.OPEN),
        (State.OPEN, Frame(1, 99, 0, b""), None, State.OPEN),
        (State.HALF, request(1), REUSED, None),
        (State.HALF, data(1), CLOSED, None),
        (State.HALF, data(1, Flag.REMOTE_CLOSED), CLOSED, None),
        (State.HALF, Frame(1, FrameType.RESPONSE, 0, b""), None, State.HALF),
    ],
)
def test_every_state_with_every_frame(
    before: State | None, frame: Frame, event: object, after: State | None
) -> None:
    streams = in_state(before)
    assert streams.receive(frame) == event
    assert streams.state(1) is after


@pytest.mark.parametrize("state", [State.OPEN, State.HALF])
def test_an_answer_ends_a_stream_once(state: State) -> None:
    streams = in_state(state)
    assert streams.answered(1)
    assert not streams.answered(1)
    assert streams.receive(data(1)) is None
    assert streams.receive(request(1)) == REUSED


def test_even_and_old_ids_are_refused() -> None:
    streams = Streams()
    even = streams.receive(request(2))
    assert isinstance(even, Refused)
    assert even.code is Code.INVALID_ARGUMENT
    streams.receive(request(9))
    assert isinstance(streams.receive(request(7)), Refused)


def test_oversized_is_answered_on_its_stream() -> None:
    event = Streams().receive(Oversized(5, 1, MAX_PAYLOAD + 1))
    assert isinstance(event, Refused)
    assert (event.stream_id, event.code) == (5, Code.RESOURCE_EXHAUSTED)


def test_number_of_calls_is_bounded() -> None:
    streams = Streams()
    for number in range(MAX_STREAMS):
        assert isinstance(streams.receive(request(2 * number + 1)), Opened)
    refused = streams.receive(request(2 * MAX_STREAMS + 1))
    assert isinstance(refused, Refused)
    assert refused.code is Code.RESOURCE_EXHAUSTED
    assert len(streams) == MAX_STREAMS
