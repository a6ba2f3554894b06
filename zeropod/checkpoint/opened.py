"""What a container's processes have open that the world outside may change during a sleep.

Below a bind mount: files and directories that are open, mapped, or somebody's working directory,
and inodes that an inotify watches. Each is found by its path in the container and opened O_PATH,
which keeps the inode, and its name, for as long as the descriptor lives. What is deleted already is
left out: CRIU itself carries that in its images.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeropod.oci import mountinfo, syscalls
from zeropod.oci.bundle import Bundle

_DELETED: Final = " (deleted)"
_WATCH: Final = re.compile(
    r"inotify wd:\w+ ino:(\w+) sdev:(\w+) .*fhandle-type:(\w+) f_handle:(\w+)"
)
_MOST_SYMLINKS: Final = 40


@dataclass(frozen=True, slots=True)
class Bind:
    """A bind mount of config.json. ``point``: where it is in the container, without symlinks.

    ``id``: its number in mountinfo. ``device``: as the kernel numbers it (major << 20 | minor).
    """

    id: int
    device: int
    point: str
    destination: str
    source: Path

    def outside(self, path: str) -> Path:
        """Where the host finds what the container finds at ``path``."""
        return (
            self.source / path[len(self.point) :].lstrip("/") if path != self.point else self.source
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """An inode and its path in the container. ``watched``: somebody's inotify has it.

    ``mapped``: it is in somebody's memory, whether it is open as well or not.
    """

    fd: int
    bind: Bind
    path: str
    watched: bool = False
    mapped: bool = False


class Binds:
    """The bind mounts of a running container. Raises OSError when it is gone."""

    def __init__(self, pid: int, bundle: Bundle) -> None:
        wanted = {
            inside(bundle.root, str(mount.get("destination"))): mount
            for mount in bundle.config.get("mounts") or ()
            if mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
        }
        self._points: dict[str, Bind | None] = {}
        for entry in mountinfo.entries(pid):
            point = entry.point
            self._points[point] = None
            if mount := wanted.get(point):
                major, minor = map(int, entry.device.split(":"))
                destination, source = str(mount["destination"]), bundle.path / str(mount["source"])
                kernels = major << 20 | minor
                self._points[point] = Bind(entry.id, kernels, point, destination, source)

    def __iter__(self) -> Iterator[Bind]:
        return (bind for bind in self._points.values() if bind is not None)

    def of(self, path: str) -> Bind | None:
        """The one that a path in the container lies in."""
        while path not in self._points and path not in ("/", ""):
            path = path.rpartition("/")[0] or "/"
        return self._points.get(path)


def look(pids: Iterable[int], binds: Binds, most: int) -> Iterator[Opened]:
    """Everything once, ``most`` at most. The descriptors are the caller's."""
    seen: set[tuple[str, bool]] = set()
    for pid in pids:
        for opened in _of(Path(f"/proc/{pid}"), binds, seen):
            yield opened
            if len(seen) >= most:
                return


def inside(root: Path, path: str) -> str:
    """A path below ``root`` as a process with that root would resolve it."""
    done: list[str] = []
    left = path.split("/")[::-1]
    for _ in range(_MOST_SYMLINKS + len(left)):
        while left and left[-1] in ("", "."):
            left.pop()
        if not left:
            break
        name = left.pop()
        if name == "..":
            done = done[:-1]
            continue
        try:
            target = root.joinpath(*done, name).readlink()
        except OSError:
            done.append(name)
            continue
        if target.is_absolute():
            done = []
        left += str(target).split("/")[::-1]
    return "/" + "/".join([*done, *left[::-1]])


def _of(process: Path, binds: Binds, seen: set[tuple[str, bool]]) -> Iterator[Opened]:
    for link in (*_mapped(process, binds), process / "cwd", *_entries(process / "fd")):
        with contextlib.suppress(OSError):  # closed meanwhile
            path = str(link.readlink())
            if path == "anon_inode:inotify":
                yield from _watched(process, link.name, binds, seen)
            elif path.startswith("/") and not path.endswith(_DELETED):
                bind = binds.of(path)
                if bind is not None and (path, False) not in seen:
                    fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
                    seen.add((path, False))
                    yield Opened(fd, bind, path, mapped=link.parent.name == "map_files")


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _mapped(process: Path, binds: Binds) -> Iterator[Path]:
    try:
        maps = (process / "maps").read_text(errors="surrogateescape")
    except OSError:
        return
    last = ""
    for line in maps.splitlines():
        area, *_, path = line.split(maxsplit=5)
        if path.startswith("/") and path != last and binds.of(path) is not None:
            yield process / "map_files" / "-".join(f"{int(a, 16):x}" for a in area.split("-"))
        last = path


def _watched(process: Path, fd: str, binds: Binds, seen: set[tuple[str, bool]]) -> Iterator[Opened]:
    for found in _WATCH.finditer((process / "fdinfo" / fd).read_text()):
        inode, device, kind = (int(digits, 16) for digits in found.groups()[:3])
        for bind in binds:
            if bind.device != device:
                continue
            handle = _by_handle(process, bind, kind, bytes.fromhex(found[4]))
            if handle < 0:
                continue
            path = str(Path(f"/proc/self/fd/{handle}").readlink())
            if (
                binds.of(path) is bind
                and (path, True) not in seen
                and os.fstat(handle).st_ino == inode
            ):
                seen.add((path, True))
                yield Opened(handle, bind, path, watched=True)
                break
            os.close(handle)


def _by_handle(process: Path, bind: Bind, kind: int, handle: bytes) -> int:
    """A descriptor by a handle that is good on the mount, -1 where it is not."""
    try:
        mount = os.open(f"{process}/root{bind.point}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        return syscalls.open_by_handle(mount, kind, handle)
    except OSError:
        return -1
    finally:
        os.close(mount)
