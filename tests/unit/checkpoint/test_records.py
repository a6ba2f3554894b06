"""CRIU's records: taken apart and put together, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropod.checkpoint import records
from zeropod.checkpoint.records import Record

_MAGIC = records.magic(0x56303138)
_VALUES = st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=20))
_FIELDS = st.lists(st.tuples(st.integers(1, 1 << 20), _VALUES), max_size=8)


def _record(fields: list[tuple[int, records.Value]]) -> Record:
    made = Record()
    for number, value in dict(fields).items():
        made.set(number, value)
    return made


@given(_FIELDS)
def test_what_is_packed_is_read_again(fields: list[tuple[int, records.Value]]) -> None:
    again = Record(_record(fields).pack())
    for number, value in dict(fields).items():
        found = again.number(number) if isinstance(value, int) else again.data(number)
        assert found == value
    assert again.pack() == _record(fields).pack()


def test_what_is_not_asked_for_stays_byte_for_byte() -> None:
    fixed = b"\x0d\x01\x02\x03\x04" + b"\x11" + bytes(8)  # fields 1 (32 bits) and 2 (64 bits)
    rest = b"\x1a\x02hi" + b"\x1a\x00" + b"\x20\x01"
    record = Record(fixed + rest)
    assert record.all(3) == [b"hi", b""]
    record.set(4, 300)
    assert record.pack() == fixed + b"\x1a\x02hi\x1a\x00" + b"\x20\xac\x02"
    assert record.drop(3) and not record.drop(3)
    assert record.pack() == fixed + b"\x20\xac\x02"


@pytest.mark.parametrize("number", [0, 1, -1, 2**31 - 1, -(2**31)])
def test_signed_numbers(number: int) -> None:
    assert records.signed(records.zigzag(number)) == number


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x08\xff", b"\x0a\x05abc", b"\x0b", b"\x09\x01", b"\x08" + b"\xff" * 11]
)
def test_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match="no protobuf message"):
        Record(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        record = Record(data)
    except ValueError:
        return
    assert Record(record.pack()).pack() == record.pack()


def test_an_image(tmp_path: Path) -> None:
    entries = [Record().set(1, 7), Record().set(6, b"/a/path")]
    records.write(tmp_path, {"files.img": records.image(_MAGIC, entries)})
    magic, found = records.read(tmp_path / "files.img")
    assert magic == _MAGIC
    assert [entry.pack() for entry in found] == [entry.pack() for entry in entries]


@pytest.mark.parametrize(
    "harm", [b"", b"1234567", b"12345678", _MAGIC + b"\x05\0\0\0abc", _MAGIC + b"\x05"]
)
def test_no_image(tmp_path: Path, harm: bytes) -> None:
    (tmp_path / "files.img").write_bytes(harm)
    with pytest.raises(ValueError, match=r"files\.img"):
        records.read(tmp_path / "files.img")


def test_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o640)
    with pytest.raises(OSError, match="missing"):
        records.write(tmp_path, {"a": b"new", "missing/b": b"new"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"old"}
    records.write(tmp_path, {"a": b"new", "b": b"new"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "a": b"new",
        "b": b"new",
    }
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
