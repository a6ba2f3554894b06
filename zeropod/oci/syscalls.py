"""The few system calls that Python 3.11 has no name for; the one place that uses ctypes."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

CLONE_FS: Final = 0x200
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWUSER: Final = 0x10000000
IN_ATTRIB: Final = 0x4
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVED: Final = 0xC0
IN_MOVED_TO: Final = 0x80
IN_MOVE_SELF: Final = 0x800
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

# Without a name in older C libraries; the numbers are every architecture's.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = (ctypes.c_long(number) for number in (428, 429, 442))
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_IDMAP: Final = 0x100000


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2); an empty string is a null pointer. Raises OSError."""
    _check(
        _LIBC.mount(
            os.fsencode(source) or None,
            os.fsencode(target),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            os.fsencode(data) or None,
        )
    )


def umount2(target: str, flags: int) -> None:
    """umount2(2). Raises OSError."""
    _check(_LIBC.umount2(os.fsencode(target), flags))


def open_tree(path: str) -> int:
    """A descriptor of a new mount, which is nowhere yet, of what is mounted there. OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _check(_LIBC.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags)))


def map_ids(mount_fd: int, user_namespace_fd: int) -> None:
    """mount_setattr(2): id-map a mount that is nowhere yet. Raises OSError."""
    given = struct.pack("4Q", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace_fd)
    size = ctypes.c_size_t(len(given))
    _check(_LIBC.syscall(_MOUNT_SETATTR, mount_fd, b"", _AT_EMPTY_PATH, given, size))


def move_mount(mount_fd: int, target: str) -> None:
    """move_mount(2): put a mount that is nowhere yet at a place. Raises OSError."""
    path, flags = os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH
    _check(_LIBC.syscall(_MOVE_MOUNT, mount_fd, b"", _AT_FDCWD, path, flags))


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread. Raises OSError."""
    _check(_LIBC.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2), for the calling thread. Raises OSError."""
    _check(_LIBC.setns(fd, flags))


def inotify(path: str, mask: int) -> int:
    """A descriptor, non-blocking, that is readable after an event of ``mask`` at ``path``.

    Raises OSError.
    """
    fd = inotify_init()
    try:
        inotify_add(fd, path, mask)
    except OSError:
        os.close(fd)
        raise
    return fd


def inotify_init() -> int:
    """A descriptor, non-blocking, that watches nothing yet. Raises OSError."""
    fd: int = _LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    _check(fd)
    return fd


def inotify_add(fd: int, path: str, mask: int) -> None:
    """Watch one more path, or the same one for something else. Raises OSError."""
    _check(_LIBC.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)))


def open_by_handle(mount: int, kind: int, handle: bytes) -> int:
    """open_by_handle_at(2) with O_PATH on the file system of descriptor ``mount``.

    Raises OSError: ESTALE where the inode is gone.
    """
    packed = struct.pack("=Ii", len(handle), kind) + handle
    fd: int = _LIBC.open_by_handle_at(mount, packed, os.O_PATH | os.O_CLOEXEC)
    _check(fd)
    return fd


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
