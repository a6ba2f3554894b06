"""Frames of ttrpc: bytes in, frames out, no sockets.

A frame is a header of ten bytes (length u32, stream id u32, type u8, flags u8, big endian) and
``length`` bytes of payload. The length comes from outside, so it is bounded before memory is taken:
a longer frame is reported once as `Oversized` and its payload is thrown away as it arrives, which
keeps the connection in step, as containerd's own implementation does.
Source: the protocol description of containerd/ttrpc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

HEADER: Final = struct.Struct(">IIBB")
MAX_PAYLOAD: Final = 4 << 20


class FrameType(IntEnum):
    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(IntFlag):
    REMOTE_CLOSED = 1
    REMOTE_OPEN = 2
    NO_DATA = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """``type`` and ``flags`` are kept as they came: unknown ones concern the stream layer."""

    stream_id: int
    type: int
    flags: int
    payload: bytes

    def encode(self) -> bytes:
        """The frame on the wire. Raises ValueError for a payload above `MAX_PAYLOAD`."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"a payload of {len(self.payload)} bytes exceeds {MAX_PAYLOAD}")
        header = HEADER.pack(len(self.payload), self.stream_id, self.type, self.flags)
        return header + self.payload


@dataclass(frozen=True, slots=True)
class Oversized:
    """A frame whose payload was refused unseen."""

    stream_id: int
    type: int
    length: int


class Decoder:
    """Cuts a byte stream into frames, whatever pieces it arrives in."""

    __slots__ = ("_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    @property
    def held(self) -> int:
        """Bytes kept until their frame is complete, at most one frame's worth."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame | Oversized]:
        """Take ``data`` and give the frames that it completes."""
        position = min(self._skip, len(data))
        self._skip -= position
        self._buffer += data[position:] if position else data
        while len(self._buffer) >= HEADER.size:
            length, stream_id, kind, flags = HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD:
                have = min(length, len(self._buffer) - HEADER.size)
                del self._buffer[: HEADER.size + have]
                self._skip = length - have
                yield Oversized(stream_id, kind, length)
                continue
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(stream_id, kind, flags, payload)
