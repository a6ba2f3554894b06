"""mount(2) and umount2(2) for a container's root file system.

containerd sends mounts as mount(8) would take them: a type, a source and options, some of which are
flags. Overlay's layer paths can be longer than the page that the kernel takes options in; then they
are given relative to their common parent, by a thread with a working directory of its own.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeropod.errors import RuntimeFailed
from zeropod.oci import mountinfo, syscalls
from zeropod.oci.idmap import IdMap, mapped, mapped_layers

_PAGE: Final = 4096
_LOWER: Final = "lowerdir="

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
_SET: Final = {
    "ro": MS_RDONLY,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "remount": MS_REMOUNT,
    "mand": 64,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
_CLEAR: Final = {
    "rw": MS_RDONLY,
    "suid": 2,
    "dev": 4,
    "exec": 8,
    "async": 16,
    "nomand": 64,
    "atime": 1024,
    "diratime": 2048,
    "norelatime": 1 << 21,
    "nostrictatime": 1 << 24,
    "defaults": 0,
}
_PROPAGATION: Final = {
    "unbindable": 1 << 17,
    "private": 1 << 18,
    "slave": 1 << 19,
    "shared": 1 << 20,
    "runbindable": 1 << 17 | MS_REC,
    "rprivate": 1 << 18 | MS_REC,
    "rslave": 1 << 19 | MS_REC,
    "rshared": 1 << 20 | MS_REC,
}


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount as containerd describes it. ``target`` is relative to the root file system."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """Options taken apart: flag bits, propagation bits, and what the file system itself reads."""

    flags: int
    propagation: int
    data: str


def parse(options: Sequence[str]) -> Parsed:
    """Take mount options apart; a later one overrides an earlier one."""
    flags = propagation = 0
    data: list[str] = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation |= _PROPAGATION[option]
        elif option:
            data.append(option)
    return Parsed(flags, propagation, ",".join(data))


def mount_all(mounts: Sequence[Mount], root: Path) -> None:
    """Mount them one over the other. On failure what was mounted is taken away again.

    Raises:
        RuntimeFailed: names the source, the target and the kernel's reason.
    """
    if mounts:
        root.mkdir(exist_ok=True)
    try:
        for mount in mounts:
            _mount(mount, root / mount.target.lstrip("/"))
    except BaseException:
        unmount_all(root)
        raise


def unmount_all(target: Path) -> None:
    """Unmount whatever is mounted at ``target``, all of it, lazily. None there is no error.

    Raises:
        RuntimeFailed: the kernel refused.
    """
    try:
        while True:
            syscalls.umount2(str(target), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise RuntimeFailed(f"unmount {target}: {error.strerror}") from error


def mounts_below(directory: Path) -> list[Path]:
    """The mount points below a directory, the deepest first; one twice where two are stacked."""
    prefix = f"{directory}/"
    points = [entry.point for entry in mountinfo.entries() if entry.point.startswith(prefix)]
    return [Path(point) for point in sorted(points, key=len, reverse=True)]


def unmount_below(directory: Path, keep: Collection[Path] = ()) -> None:
    """Unmount what is mounted below a directory, but for ``keep``. Raises RuntimeFailed."""
    for point in mounts_below(directory):
        if point not in keep:
            unmount_all(point)


def _mount(mount: Mount, target: Path) -> None:
    ids, options = IdMap.take(mount.options)
    try:
        if ids is None:
            _mount_plain(mount, parse(options), target)
        elif mount.type == "overlay":
            lower = [option for option in options if option.startswith(_LOWER)]
            layers = "".join(lower).removeprefix(_LOWER).split(":")
            with mapped_layers(target, ids, layers) as found:
                others = [option for option in options if option not in lower]
                _mount_plain(mount, parse([*others, _LOWER + ":".join(found)]), target)
        else:
            with mapped(target, ids):
                _mount_plain(mount, parse(options), target)
    except OSError as error:
        text = f"mount {mount.type} {mount.source} at {target}: {error.strerror}"
        raise RuntimeFailed(text) from error


def _mount_plain(mount: Mount, parsed: Parsed, target: Path) -> None:
    if "loop" in parsed.data.split(","):
        raise OSError(errno.EOPNOTSUPP, "loop devices are not supported by this version")
    if len(os.fsencode(parsed.data)) >= _PAGE:
        _mount_from_parent(mount, parsed, target)
    else:
        syscalls.mount(mount.source, str(target), mount.type, parsed.flags, parsed.data)
    if parsed.flags & MS_BIND and parsed.flags & ~(MS_BIND | MS_REC):
        # A bind takes no other flags: they need a second call.
        flags = parsed.flags | MS_REMOUNT
        syscalls.mount(mount.source, str(target), mount.type, flags, parsed.data)
    if parsed.propagation:
        syscalls.mount("", str(target), "", parsed.propagation, "")


def _mount_from_parent(mount: Mount, parsed: Parsed, target: Path) -> None:
    parent, short = shorten(parsed.data)
    failure: list[OSError] = []

    def work() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_FS)
            os.chdir(parent)
            syscalls.mount(mount.source, str(target), mount.type, parsed.flags, short)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


_LAYERS: Final = ("lowerdir", "upperdir", "workdir")


def shorten(data: str) -> tuple[str, str]:
    """Overlay options with paths relative to the layers' common parent: (parent, options).

    Raises:
        OSError: E2BIG where that does not make them fit into a page.
    """
    options = [option.partition("=")[::2] for option in data.split(",")]
    paths = [path for key, value in options if key in _LAYERS for path in value.split(":")]
    parent = os.path.commonpath(paths) if paths and all(map(os.path.isabs, paths)) else "/"
    if parent == "/":
        raise OSError(errno.E2BIG, "the options are longer than a page and share no parent folder")
    short = ",".join(
        f"{key}={':'.join(os.path.relpath(path, parent) for path in value.split(':'))}"
        if key in _LAYERS
        else f"{key}={value}".removesuffix("=")
        for key, value in options
    )
    if len(os.fsencode(short)) >= _PAGE:
        raise OSError(errno.E2BIG, "the options are longer than a page")
    return parent, short
