"""Files that are gone are handed to CRIU as it knows them itself: as ghosts.

A ghost is an image with a file's attributes and content, and a record that maps an open file to it.
CRIU makes the file in the directory where it was, opens it under its old name and removes it again
before the restore ends: the app has what it had, and the world does not see it. An inotify that
watches the inode is set on the ghost, and hears of the removal: which is the truth.

The records that CRIU wrote first are kept beside the images, so that each change begins there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zeropod.checkpoint import records
from zeropod.checkpoint.records import Record

_FILES: Final = "files.img"
_REMAPS: Final = "remap-fpath.img"
_REMAPS_MAGIC: Final = records.magic(0x59133954)
_GHOST_MAGIC: Final = records.magic(0x52583605)
_REG_TYPE, _GHOST = 1, 1
# of FileEntry
_TYPE, _FILE_ID, _REG, _INOTIFY = 1, 2, 3, 13

# of RegFileEntry
_ID, _FLAGS, _POS, _FOWN, _NAME, _MOUNT, _SIZE, _MODE, _BUILD_ID = 1, 2, 3, 5, 6, 7, 8, 10, 11
# of InotifyFileEntry and InotifyWdEntry, FhEntry
_WATCHES, _INODE, _DEVICE, _HANDLE, _PATH, _PATH_MOUNT = 5, 2, 5, 7, 4, 5


@dataclass(frozen=True, slots=True)
class Gone:
    """An inode that only ``fd`` (O_PATH) still has.

    ``path``: where the container had it; ``existing``: the nearest directory above that is there.
    ``mount``, ``device``: numbers of its mount, and of the file system as the kernel writes it.
    """

    fd: int
    path: str
    existing: str
    mount: int
    device: int


@dataclass(slots=True)
class Changes:
    """What has become of files since the dump, by the path that each had then.

    ``loose``: files whose size and mode may be others now. ``moved``: new paths. ``watched``: new
    paths of inodes that are watched, by (device, inode); ``gone_watched``: those without any.
    """

    loose: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)
    gone: dict[str, Gone] = field(default_factory=dict)
    watched: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    gone_watched: dict[tuple[int, int], Gone] = field(default_factory=dict)


def apply(images: Path, kept: Path, changes: Changes) -> None:
    """Rewrite the records in ``images`` so that they are true again.

    ``kept``: a directory for the records as they were.

    Raises:
        OSError, ValueError: nothing has changed.
    """
    _keep(images, kept)
    magic, files = records.read(kept / _FILES)
    remaps: list[Record] = []
    if (kept / _REMAPS).exists():
        _, remaps = records.read(kept / _REMAPS)
    work = _Work(images, files, remaps)
    for entry in files:
        if entry.has(_REG):
            work.fit_file(entry, changes)
        elif entry.has(_INOTIFY):
            work.fit_watches(entry, changes)
    try:
        for name, (record, gone) in work.ghosts.items():
            _write_ghost(images / name, record, gone.fd)
        records.write(
            images,
            {
                _FILES: records.image(magic, [*files, *work.added]),
                _REMAPS: records.image(_REMAPS_MAGIC, [*remaps, *work.files, *work.directories]),
            },
        )
    except BaseException:
        for name in work.ghosts:
            with contextlib.suppress(OSError):
                (images / name).unlink(missing_ok=True)
        raise
    for number in work.stale:
        with contextlib.suppress(OSError):  # nothing speaks of it any more
            (images / _ghost_name(number)).unlink(missing_ok=True)


class _Work:
    """What is to be written.

    ``stale``: ghosts of the change before. They are good until this one is done, so their numbers
    are not used again.
    """

    def __init__(self, images: Path, files: list[Record], remaps: list[Record]) -> None:
        self.added: list[Record] = []
        self.files: list[Record] = []
        self.directories: list[Record] = []
        self.ghosts: dict[str, tuple[Record, Gone]] = {}
        self._by_inode: dict[tuple[int, int], int] = {}
        self._remapped = {remap.number(1) for remap in remaps}
        dumped = {remap.number(2) for remap in remaps if remap.number(3) == _GHOST}
        self.stale = _ghosts_in(images) - dumped
        self._next_ghost = 1 + max(dumped | self.stale, default=0)
        self._next_file = 1 + max((entry.number(_FILE_ID) for entry in files), default=0)

    def fit_file(self, entry: Record, changes: Changes) -> None:
        reg = Record(entry.data(_REG))
        path = os.fsdecode(reg.data(_NAME))
        if reg.number(_ID) in self._remapped:
            return  # it was deleted before the dump
        if path in changes.loose:
            reg.drop(_SIZE, _MODE, _BUILD_ID)
        if path in changes.moved:
            reg.set(_NAME, os.fsencode(changes.moved[path]))
        if gone := changes.gone.get(path):
            reg.drop(_SIZE, _MODE, _BUILD_ID)
            if name := self._remap(reg.number(_ID), gone):
                reg.set(_NAME, os.fsencode(name))
        entry.set(_REG, reg.pack())

    def fit_watches(self, entry: Record, changes: Changes) -> None:
        inotify = Record(entry.data(_INOTIFY))
        watches = [Record(data) for data in inotify.all(_WATCHES)]
        for watch in watches:
            key = watch.number(_DEVICE), watch.number(_INODE)
            if found := changes.watched.get(key):
                path, mount = found
                handle = Record(watch.data(_HANDLE))
                handle.set(_PATH, os.fsencode(path)).set(_PATH_MOUNT, mount)
                watch.set(_HANDLE, handle.pack())
            elif (gone := changes.gone_watched.get(key)) and key not in self._by_inode:
                self._add(gone)
        inotify.replace(_WATCHES, [watch.pack() for watch in watches])
        entry.set(_INOTIFY, inotify.pack())

    def _add(self, gone: Gone) -> None:
        """A file that nobody has open, for the sake of its ghost."""
        owner = Record()
        for number in range(1, 6):
            owner.set(number, 0)
        id, self._next_file = self._next_file, self._next_file + 1
        name = self._remap(id, gone) or gone.path
        reg = Record().set(_ID, id).set(_FLAGS, 0).set(_POS, 0).set(_FOWN, owner.pack())
        reg.set(_NAME, os.fsencode(name)).set(_MOUNT, records.zigzag(gone.mount))
        self.added.append(Record().set(_TYPE, _REG_TYPE).set(_FILE_ID, id).set(_REG, reg.pack()))

    def _remap(self, id: int, gone: Gone) -> str:
        """Map the file to its inode's ghost. Returns a name that it gets, "" for its own.

        CRIU opens a directory under its ghost's name, which must not be somebody else's by then.
        """
        found = os.fstat(gone.fd)
        directory = stat.S_ISDIR(found.st_mode)
        key = gone.device, found.st_ino
        number = self._by_inode.get(key)
        if number is None:
            number = self._by_inode[key] = self._next_ghost
            self._next_ghost += 1
            self.ghosts[_ghost_name(number)] = _ghost(gone, found), gone
        remap = Record().set(1, id).set(2, number).set(3, _GHOST)
        (self.directories if directory else self.files).append(remap)
        if not directory:
            return ""
        return f"{gone.existing.rstrip('/')}/.{gone.path.rpartition('/')[2]}.{number:x}.ghost"


def _ghost_name(number: int) -> str:
    return f"ghost-file-{number:x}.img"


def _ghosts_in(images: Path) -> set[int]:
    names = (path.stem for path in images.glob("ghost-file-*.img"))
    return {int(name.rpartition("-")[2], 16) for name in names}


def _ghost(gone: Gone, found: os.stat_result) -> Record:
    record = Record().set(1, found.st_uid).set(2, found.st_gid).set(3, found.st_mode)
    record.set(4, gone.device).set(5, found.st_ino)
    for number, ns in ((7, found.st_atime_ns), (8, found.st_mtime_ns)):
        seconds, rest = divmod(ns, 1_000_000_000)
        record.set(number, Record().set(1, max(0, seconds)).set(2, rest // 1000).pack())
    return record


def _write_ghost(image: Path, record: Record, fd: int) -> None:
    with image.open("wb") as out:
        out.write(records.image(_GHOST_MAGIC, [record]))
        out.flush()
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with Path(f"/proc/self/fd/{fd}").open("rb") as content:
                while os.sendfile(out.fileno(), content.fileno(), None, 1 << 30):
                    pass


def _keep(images: Path, kept: Path) -> None:
    if kept.exists():
        return
    fresh = kept.with_name(f"{kept.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for name in (_FILES, _REMAPS):
        if (images / name).exists():
            shutil.copy2(images / name, fresh / name)
    fresh.rename(kept)
