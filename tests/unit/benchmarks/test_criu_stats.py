"""CRIU's statistics, read without its protobuf schema."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import criu_stats

_MAGIC = (0x55105940, 0x57093306)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _entry(fields: dict[int, int], which: int = 1) -> bytes:
    inner = b"".join(_varint(number << 3) + _varint(value) for number, value in fields.items())
    return _varint(which << 3 | 2) + _varint(len(inner)) + inner


def _file(folder: Path, message: bytes, magic: tuple[int, int] = _MAGIC) -> Path:
    file = folder / "stats-dump"
    file.write_bytes(struct.pack("<III", *magic, len(message)) + message)
    return file


@given(frozen=st.integers(0, 2**32 - 1), written=st.integers(0, 2**63))
def test_what_a_dump_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory, frozen: int, written: int
) -> None:
    file = _file(tmp_path_factory.mktemp("stats"), _entry({2: frozen, 7: written, 99: 5}))
    assert criu_stats.dump(file) == {"frozen_us": frozen, "pages_written": written}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (_entry({4: 1}, which=2), "not those of a dump"),
        (_entry({2: 300})[:-1], "cut off"),
        (_varint(1 << 3 | 2) + _varint(9) + b"\x08", "cut off"),
        (_varint(1 << 3 | 5) + bytes(4), "wire type 5"),
    ],
)
def test_another_message_is_refused(tmp_path: Path, message: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        criu_stats.dump(_file(tmp_path, message))


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no statistics"):
        criu_stats.dump(_file(tmp_path, b"", magic=(1, 2)))
    short = tmp_path / "short"
    short.write_bytes(b"\0" * 11)
    with pytest.raises(ValueError, match="too short"):
        criu_stats.dump(short)
