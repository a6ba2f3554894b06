"""Records and ghosts as CRIU reads them, from images that have only what matters here."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropod.checkpoint import ghosts, records
from zeropod.checkpoint.ghosts import Changes, Gone
from zeropod.checkpoint.opened import inside
from zeropod.checkpoint.records import Record

_FILES_MAGIC, _REMAPS_MAGIC = records.magic(0x56303138), records.magic(0x59133954)
_DEVICE = 0x800001


def reg(id: int, name: str) -> Record:
    file = Record().set(1, id).set(2, 0).set(3, 5).set(5, b"\x08\x00").set(6, name.encode())
    file.set(7, records.zigzag(99)).set(8, 10).set(10, 0o100644)
    return Record().set(1, 1).set(2, id).set(3, file.pack())


def inotify(id: int, *inodes: int) -> Record:
    made = Record().set(1, id).set(2, 0).set(4, b"\x08\x00")
    handle = Record().set(1, 8).set(2, 1).set(3, 77).pack()
    watches = [
        Record().set(1, id).set(2, inode).set(3, 4).set(4, 0).set(5, _DEVICE).set(6, wd + 1)
        for wd, inode in enumerate(inodes)
    ]
    made.replace(5, [watch.set(7, handle).pack() for watch in watches])
    return Record().set(1, 8).set(2, id).set(13, made.pack())


@pytest.fixture
def gone(tmp_path: Path) -> Iterator[Gone]:
    """A file that was deleted, and has no more than a descriptor."""
    file = tmp_path / "gone"
    file.write_text("its content")
    file.chmod(0o640)
    fd = os.open(file, os.O_PATH)
    file.unlink()
    yield Gone(fd, "/config/dir/key", "/config", 99, _DEVICE)
    os.close(fd)


class Images:
    def __init__(self, path: Path, *entries: Record) -> None:
        self.path = path / "images"
        self.path.mkdir()
        self._kept = path / "dumped"
        records.write(self.path, {"files.img": records.image(_FILES_MAGIC, entries)})
        self.first = (self.path / "files.img").read_bytes()

    def apply(self, changes: Changes) -> None:
        ghosts.apply(self.path, self._kept, changes)

    def files(self) -> list[Record]:
        return [Record(e.data(3)) for e in records.read(self.path / "files.img")[1] if e.has(3)]

    def remaps(self) -> list[tuple[int, int, int]]:
        magic, found = records.read(self.path / "remap-fpath.img")
        assert magic == _REMAPS_MAGIC
        return [(entry.number(1), entry.number(2), entry.number(3)) for entry in found]

    def ghost(self, number: int) -> tuple[Record, bytes]:
        data = (self.path / f"ghost-file-{number:x}.img").read_bytes()
        (size,) = struct.unpack_from("<I", data, 8)
        return Record(data[12 : 12 + size]), data[12 + size :]


def test_a_file_that_is_gone_becomes_a_ghost(tmp_path: Path, gone: Gone) -> None:
    images = Images(tmp_path, reg(1, "/bin/app"), reg(2, gone.path), reg(3, gone.path))
    images.apply(Changes(gone={gone.path: gone}))
    assert images.remaps() == [(2, 1, 1), (3, 1, 1)]
    ghost, content = images.ghost(1)
    assert content == b"its content"
    assert [ghost.number(n) for n in (1, 2, 3, 4)] == [
        os.geteuid(),
        os.getegid(),
        0o100640,
        _DEVICE,
    ]
    assert ghost.number(5) == os.fstat(gone.fd).st_ino
    checked = [file.has(8) or file.has(10) for file in images.files()]
    assert checked == [True, False, False]
    assert [file.data(6).decode() for file in images.files()] == ["/bin/app", *2 * [gone.path]]


def test_each_change_begins_with_what_was_dumped(tmp_path: Path, gone: Gone) -> None:
    images = Images(tmp_path, reg(1, "/data/log"), reg(2, gone.path))
    images.apply(Changes(gone={gone.path: gone}))
    images.apply(Changes(loose={"/data/log"}, moved={"/data/log": "/data/log.1"}))
    assert images.remaps() == []
    log, other = images.files()
    assert log.data(6) == b"/data/log.1" and not log.has(8)
    assert other.pack() == Record(reg(2, gone.path).data(3)).pack()
    images.apply(Changes())
    assert (images.path / "files.img").read_bytes() == images.first


def test_a_watched_inode_gets_a_file_for_its_ghost(tmp_path: Path, gone: Gone) -> None:
    inode = os.fstat(gone.fd).st_ino
    images = Images(tmp_path, reg(7, "/bin/app"), inotify(9, inode, inode + 1))
    images.apply(
        Changes(
            gone_watched={(_DEVICE, inode): gone},
            watched={(_DEVICE, inode + 1): ("/config", 99)},
        )
    )
    assert images.remaps() == [(10, 1, 1)]
    added = images.files()[-1]
    assert (added.number(1), records.signed(added.number(7))) == (10, 99)
    assert added.has(2) and added.has(3) and added.has(5)
    (entry,) = (e for e in records.read(images.path / "files.img")[1] if e.has(13))
    handles = [Record(Record(watch).data(7)) for watch in Record(entry.data(13)).all(5)]
    assert [(handle.data(4), handle.number(5)) for handle in handles] == [
        (b"", 0),
        (b"/config", 99),
    ]


def test_a_directory_is_opened_under_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    fd = os.open(tmp_path / "dir", os.O_PATH)
    (tmp_path / "dir").rmdir()
    directory = Gone(fd, "/config/a/dir", "/config", 99, _DEVICE)
    images = Images(tmp_path, reg(1, "/config/a/dir"))
    images.apply(Changes(gone={"/config/a/dir": directory}))
    os.close(fd)
    (file,) = images.files()
    assert file.data(6) == b"/config/.dir.1.ghost"
    assert images.remaps() == [(1, 1, 1)]
    assert images.ghost(1)[1] == b""


def test_a_failure_changes_nothing(tmp_path: Path, gone: Gone) -> None:
    images = Images(tmp_path, reg(2, gone.path))
    closed = os.open("/", os.O_PATH)
    os.close(closed)
    bad = Gone(closed, gone.path, "/config", 1, 1)
    with pytest.raises(OSError, match="descriptor"):
        images.apply(Changes(gone={gone.path: bad}))
    assert {file.name for file in images.path.iterdir()} == {"files.img"}
    assert (images.path / "files.img").read_bytes() == images.first


def test_a_failure_leaves_what_was_changed_before(
    tmp_path: Path, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(tmp_path, reg(1, "/config/a"), reg(2, gone.path))
    images.apply(Changes(gone={gone.path: gone}))
    before = {file.name: file.read_bytes() for file in images.path.iterdir()}
    assert "ghost-file-1.img" in before

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "write", full)
    with pytest.raises(OSError, match="No space"):
        images.apply(Changes(gone={gone.path: gone}, loose={"/config/a"}))
    assert {file.name: file.read_bytes() for file in images.path.iterdir()} == before
    monkeypatch.undo()
    images.apply(Changes(gone={gone.path: gone}, loose={"/config/a"}))
    assert images.remaps() == [(2, 2, 1)]
    assert [file.name for file in images.path.glob("ghost-*")] == ["ghost-file-2.img"]


def test_paths_are_resolved_as_inside(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "run").symlink_to("/run")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "up").symlink_to("../../../run")
    assert inside(tmp_path, "/var/run/secrets/x") == "/run/secrets/x"
    assert inside(tmp_path, "//var/./run/../a") == "/a"
    assert inside(tmp_path, "/up/x") == "/run/x"
    assert inside(tmp_path, "/loop/x").startswith("/")
