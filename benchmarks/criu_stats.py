"""CRIU's stats-dump image: a header, then one protobuf message StatsEntry{dump = 1, restore = 2}.

Only whole numbers are in it, so that no generated code is needed to read it. Numbers of the fields
are those of CRIU's images/stats.proto.
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct("<III")  # IMG_SERVICE_MAGIC, STATS_MAGIC, size of the message
_MAGIC = (0x55105940, 0x57093306)
_DUMP = 1
_FIELDS = {
    1: "freezing_us",
    2: "frozen_us",
    3: "memdump_us",
    4: "memwrite_us",
    5: "pages_scanned",
    7: "pages_written",
}


def dump(file: Path) -> dict[str, int]:
    """Figures of a dump by the names of ``_FIELDS``. ValueError where it is no such image."""
    data = file.read_bytes()
    if len(data) < _HEADER.size:
        raise ValueError(f"{file}: too short")
    *magic, size = _HEADER.unpack_from(data)
    if tuple(magic) != _MAGIC or len(data) != _HEADER.size + size:
        raise ValueError(f"{file}: no statistics of CRIU")
    entry = _message(data[_HEADER.size :]).get(_DUMP)
    if not isinstance(entry, bytes):
        raise ValueError(f"{file}: not those of a dump")
    found = _message(entry)
    return {
        name: value
        for number, name in _FIELDS.items()
        if isinstance(value := found.get(number), int)
    }


def _message(data: bytes) -> dict[int, int | bytes]:
    """The fields of a message that has varints and submessages only, the last of each number."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        if key & 7 == 0:
            found[key >> 3] = value
        elif key & 7 == 2 and at + value <= len(data):
            found[key >> 3] = data[at : at + value]
            at += value
        else:
            raise ValueError(f"field {key >> 3} of wire type {key & 7} is not known or cut off")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where the next thing begins)."""
    value = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number is cut off")
