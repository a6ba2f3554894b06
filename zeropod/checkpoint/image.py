"""Checkpoint images on disk: who may read them, whether they are whole, used once only.

    <root>                     0711
      <namespace>.<id>         0711, locked by the shim while it lives
        <n>                    0700, one per sleep
          images               what CRIU wrote, files 0600
          pre-dump             memory that it wrote ahead, which images/parent points to
          work                 logs of the dump and of each attempt to restore
          manifest.json        written last, by rename: sizes of all files, checksums of small ones
          consumed             exists from the moment a restore was begun
          dumped               records as CRIU wrote them, where they had to be changed
        mounts                 stand-ins for sources of mounts that are gone
        null                   the device that masks files of a restored container
        failed                 newest images that could not be restored, kept for diagnosis

The lock tells the next start what belongs to nobody any more: a directory that can be locked. No
fsync anywhere: images never outlive the boot, nor the shim.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeropod.errors import ImageCorrupt
from zeropod.oci.reaper import Reaper

if TYPE_CHECKING:
    from zeropod.checkpoint.held import Held

log = logging.getLogger(__name__)

_SMALL: Final = 1 << 20
_KEEP_LIMIT: Final = 256 << 20
_VERSION: Final = 1
_FAILED: Final = "failed"
_DOOMED: Final = ".removed-"
_LOCK: Final = ".lock"
_PRE_DUMP: Final = "pre-dump"

_Entry = tuple[int, int | None]  # size in bytes, CRC-32 of a small file


class ImageDir:
    """The images of one sleep. ``held``: what they speak of and others may remove meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, _Entry] = {}
        self._attempts = 0
        self._consumed = False
        self.held: Held | None = None

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def consumed(self) -> bool:
        """Whether a restore from these images was begun and not proved to have come to nothing."""
        return self._consumed or (self.path / "consumed").exists()

    @property
    def size_bytes(self) -> int:
        return sum(size for size, _ in self._files.values())

    @property
    def attempt(self) -> Path:
        """The work directory of the restore that was planned last."""
        return self.path / "work" / f"restore-{self._attempts}"

    @property
    def dump(self) -> Path:
        """The work directory of the dump."""
        return self.path / "work" / "dump"

    @property
    def pre_dump(self) -> Path:
        """What was written ahead of the dump, where something was."""
        return self.path / _PRE_DUMP

    @property
    def parent(self) -> str:
        """Where the dump finds what was written ahead, as seen from ``images``; "" if nothing."""
        return f"../{_PRE_DUMP}" if self.pre_dump.exists() else ""

    def make_pre_dump(self, owner: tuple[int, int] = (0, 0)) -> Path:
        """An empty directory to write into ahead of the dump. Returns a work directory for it."""
        work = self.dump.with_name(_PRE_DUMP)
        for directory in (self.pre_dump, work):
            directory.mkdir(mode=0o700)
            if owner != (0, 0):
                os.chown(directory, *owner)
        return work

    def drop_pre_dump(self) -> None:
        """The dump is to do without."""
        shutil.rmtree(self.pre_dump)

    @classmethod
    def make(cls, path: Path, owner: tuple[int, int] = (0, 0)) -> ImageDir:
        """An empty one. ``owner``: (uid, gid) of the container's root on the host."""
        made = cls(path)
        path.mkdir(mode=0o700)
        made.images.mkdir(mode=0o700)
        made.dump.parent.mkdir(mode=0o700)
        made.dump.mkdir(mode=0o700)
        if owner != (0, 0):
            for directory in (path, made.images, made.dump.parent, made.dump):
                os.chown(directory, *owner)
        return made

    def new_attempt(self) -> Path:
        """A fresh work directory for one more restore."""
        self._attempts += 1
        self.attempt.mkdir(mode=0o700)
        return self.attempt

    def seal(self, owner: tuple[int, int] = (0, 0)) -> None:
        """Take down what the dump has written. From now on `verify` holds it to that."""
        files = _seal(self.images, "", owner)
        if self.parent:
            files |= _seal(self.pre_dump, f"{self.parent}/", owner)
        self._files = files
        fresh = self.path / "manifest.json.new"
        with contextlib.suppress(OSError):  # the disk is full now: this object knows it, too
            fresh.write_text(json.dumps({"version": _VERSION, "files": files}))
            fresh.rename(self.path / "manifest.json")

    def load(self) -> None:
        """Read the manifest of images that somebody else has sealed. Raises ImageCorrupt."""
        file = self.path / "manifest.json"
        try:
            found = json.loads(file.read_bytes())
            if found["version"] != _VERSION:
                raise ImageCorrupt(f"{file}: version {found['version']} is not known")
            self._files = {name: (int(size), crc) for name, (size, crc) in found["files"].items()}
        except FileNotFoundError:
            raise ImageCorrupt(f"{self.path}: no manifest: the dump did not end") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ImageCorrupt(f"{file}: {error}") from error

    def verify(self) -> None:
        """Compare every file with the manifest: sizes, and checksums of the small ones.

        Raises:
            ImageCorrupt: names the file and what is wrong with it.
        """
        if not self._files:
            self.load()
        for name, (size, crc) in self._files.items():
            file = self.images / name
            try:
                found = file.stat().st_size
                if found != size:
                    raise ImageCorrupt(f"{file}: has {found} bytes, {size} were written")
                if crc is not None and _checksum(file) != crc:
                    raise ImageCorrupt(f"{file}: is not what was written (checksum)")
            except FileNotFoundError:
                raise ImageCorrupt(f"{file}: is missing") from None
            except OSError as error:
                raise ImageCorrupt(f"{file}: {error.strerror}") from error

    def mark_consumed(self) -> None:
        """From now on these images are not restored again."""
        self._consumed = True
        with contextlib.suppress(OSError):  # the disk is full: this object knows it, too
            (self.path / "consumed").touch(mode=0o600)

    def unmark(self) -> None:
        """Take the mark back: it is proved that the restore let no process run."""
        with contextlib.suppress(OSError):  # it stays marked: they are not tried again
            (self.path / "consumed").unlink(missing_ok=True)
            self._consumed = False

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` when something that they speak of has changed."""
        if self.held is not None:
            self.held.watch(changed)

    def release(self) -> None:
        """They will not be restored any more. Idempotent."""
        if self.held is not None:
            self.held.close()
            self.held = None

    def discard(self) -> None:
        """Remove them. Idempotent."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def condemn(self) -> Path:
        """Put them out of the way, for they take long to remove. Returns what is to be removed."""
        self.release()
        return self.path.rename(condemned(self.path))


class ImageStore:
    """The image directories of one container, locked until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._count = 0

    @classmethod
    def open(cls, root: str, container: str) -> ImageStore:
        """Make the container's directory; what an earlier shim left there is removed.

        Raises:
            OSError: it cannot be made, or another shim holds it.
        """
        Path(root).mkdir(mode=0o711, parents=True, exist_ok=True)
        path = Path(root) / container
        ours = False
        while True:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o711)
                ours = True
            try:
                lock = _lock(path)
            except BlockingIOError:
                if ours:
                    continue  # a sweep has taken it for a dead shim's, and renames it
                raise
            if lock is None:
                continue  # removed by a sweep in between
            for entry in path.iterdir():
                if entry.name != _LOCK:
                    shutil.rmtree(entry, ignore_errors=True)
            return cls(path, lock)

    def new(self, owner: tuple[int, int] = (0, 0)) -> ImageDir:
        """A directory for the next sleep."""
        self._count += 1
        return ImageDir.make(self.path / str(self._count), owner)

    def keep_failed(self, images: ImageDir) -> Path | None:
        """Keep images for diagnosis in place of those kept before. None: they are discarded."""
        images.release()
        kept = self.path / _FAILED
        shutil.rmtree(kept, ignore_errors=True)
        if images.size_bytes > _KEEP_LIMIT:
            images.discard()
            return None
        try:
            images.path.rename(kept)
        except OSError:
            images.discard()
            return None
        return kept

    def close(self) -> None:
        """Remove everything of this container. Idempotent."""
        if self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def condemned(path: Path) -> Path:
    """The name of a directory that is to be removed."""
    return path.with_name(f"{_DOOMED}{path.name}")


def condemn(root: str) -> list[Path]:
    """Put the directories whose shim is dead out of the way. Returns what is to be removed."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in Path(root).iterdir():
            if path.name.startswith(_DOOMED):
                found.append(path)
                continue
            try:
                lock = _lock(path)
            except OSError:
                continue  # its shim lives
            if lock is not None:
                with contextlib.suppress(OSError):
                    found.append(path.rename(condemned(path)))
                os.close(lock)
    return found


def sweep(root: str) -> list[str]:
    """Remove the directories whose shim is dead. Returns their names."""
    found = condemn(root)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name.removeprefix(_DOOMED) for path in found]


async def remove(reaper: Reaper, paths: Sequence[Path]) -> None:
    """Remove directories that may be large, without holding up the event loop."""
    done = await reaper.run(["rm", "-rf", "--", *map(str, paths)])
    if done.status:
        log.error("images are not removed: %s", done.output.decode(errors="replace").strip())


def _lock(path: Path) -> int | None:
    """Lock a container's directory. None: it was removed meanwhile. Raises OSError: it is held."""
    file = path / _LOCK
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.exists() and os.path.samestat(os.fstat(lock), file.stat()):
            return lock
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _seal(directory: Path, prefix: str, owner: tuple[int, int]) -> dict[str, _Entry]:
    files: dict[str, _Entry] = {}
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.is_file(follow_symlinks=False):
            Path(entry.path).chmod(0o600)
            if owner != (0, 0):
                os.chown(entry.path, *owner)
            size = entry.stat(follow_symlinks=False).st_size
            small = size <= _SMALL and not entry.name.startswith("pages-")
            files[prefix + entry.name] = (size, _checksum(Path(entry.path)) if small else None)
    return files


def _checksum(file: Path) -> int:
    return zlib.crc32(file.read_bytes())
