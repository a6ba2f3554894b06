"""CRIU's images as records that can be read and changed without knowing all that is in them.

An image is two magic numbers and then protobuf messages, each behind its length. A message is taken
apart into fields by number only: what is not asked for is put back byte for byte, so fields of a
newer CRIU survive. Changed images are written whole or not at all: first all of them beside the old
ones, then each in its place by rename.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_MAGIC_BYTES: Final = 8
_COMMON_MAGIC: Final = 0x54564319
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Value = int | bytes


class Record:
    """One message. Raises ValueError where the bytes are none."""

    def __init__(self, data: bytes = b"") -> None:
        self._fields: list[tuple[int, int, Value]] = []
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            number, kind = key >> 3, key & 7
            value: Value
            if kind == _VARINT:
                value, at = _varint(data, at)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
                if kind == _BYTES:
                    size, at = _varint(data, at)
                if size is None or at + size > len(data):
                    raise ValueError(f"no protobuf message: field {number} of type {kind}")
                value, at = data[at : at + size], at + size
            self._fields.append((number, kind, value))

    def number(self, field: int, default: int = 0) -> int:
        """The value of an integer field."""
        found = self._last(field)
        return found if isinstance(found, int) else default

    def data(self, field: int) -> bytes:
        """The value of a string or a message, b"" where it is missing."""
        found = self._last(field)
        return found if isinstance(found, bytes) else b""

    def all(self, field: int) -> list[bytes]:
        """Each value of a repeated message."""
        return [v for n, _, v in self._fields if n == field and isinstance(v, bytes)]

    def has(self, field: int) -> bool:
        return self._last(field) is not None

    def set(self, field: int, value: Value) -> Record:
        """Set a field that occurs once; where it was, or at the end. Returns the record."""
        kind = _VARINT if isinstance(value, int) else _BYTES
        for index, (number, _, _) in enumerate(self._fields):
            if number == field:
                self._fields[index] = (field, kind, value)
                return self
        self._fields.append((field, kind, value))
        return self

    def replace(self, field: int, values: Iterable[bytes]) -> None:
        """Set all values of a repeated message."""
        self.drop(field)
        self._fields += [(field, _BYTES, value) for value in values]

    def drop(self, *fields: int) -> bool:
        """Remove every value of these. Returns whether there were any."""
        kept = [entry for entry in self._fields if entry[0] not in fields]
        gone = len(kept) < len(self._fields)
        self._fields = kept
        return gone

    def pack(self) -> bytes:
        out = bytearray()
        for number, kind, value in self._fields:
            out += _packed(number << 3 | kind)
            if isinstance(value, int):
                out += _packed(value)
            else:
                if kind == _BYTES:
                    out += _packed(len(value))
                out += value
        return bytes(out)

    def _last(self, field: int) -> Value | None:
        return next((v for n, _, v in reversed(self._fields) if n == field), None)


def signed(value: int) -> int:
    """What a sint32 means that was read as a plain number."""
    return value >> 1 ^ -(value & 1)


def zigzag(value: int) -> int:
    """How a sint32 is written."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def read(image: Path) -> tuple[bytes, list[Record]]:
    """(magic, records) of an image that has nothing but records.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another form.
    """
    data = image.read_bytes()
    if len(data) < _MAGIC_BYTES or struct.unpack_from("<I", data)[0] != _COMMON_MAGIC:
        raise ValueError(f"{image}: not an image of CRIU")
    found, at = [], _MAGIC_BYTES
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError(f"{image}: a record is cut off")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise ValueError(f"{image}: a record is cut off")
        found.append(Record(data[at : at + size]))
        at += size
    return data[:_MAGIC_BYTES], found


def magic(number: int) -> bytes:
    """What an image begins with that has this magic number of its own."""
    return struct.pack("<II", _COMMON_MAGIC, number)


def image(magic: bytes, entries: Iterable[Record]) -> bytes:
    """A whole image."""
    packed = [entry.pack() for entry in entries]
    return magic + b"".join(struct.pack("<I", len(entry)) + entry for entry in packed)


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write images, all of them or none. Raises OSError, and nothing has changed then."""
    fresh = {directory / name: directory / f".{name}.new" for name in files}
    try:
        for (target, part), data in zip(fresh.items(), files.values(), strict=True):
            part.write_bytes(data)
            part.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o600)
        for target, part in fresh.items():
            part.rename(target)
    finally:
        for part in fresh.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("no protobuf message: a number is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _packed(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
