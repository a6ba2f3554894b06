"""The few system calls that Python 3.11 has no name for; the one place that uses ctypes."""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_FS: Final = 0x200
CLONE_NEWNET: Final = 0x40000000
IN_OPEN: Final = 0x20
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


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


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread. Raises OSError."""
    _check(_LIBC.unshare(flags))


def inotify(path: str, mask: int) -> int:
    """A descriptor, non-blocking, that is readable after an event of ``mask`` at ``path``.

    Raises OSError.
    """
    fd: int = _LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    _check(fd)
    try:
        _check(_LIBC.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)))
    except OSError:
        os.close(fd)
        raise
    return fd


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
