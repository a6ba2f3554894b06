"""System calls that Python 3.11 has no name for: setns, unshare, subreaper, parent-death signal."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
CLONE_NEWNET = 0x4000_0000
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def unshare(flags: int) -> None:
    _check(_LIBC.unshare(flags), "unshare")


def become_subreaper() -> None:
    """Orphaned descendants become children of this process."""
    _check(_LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


@contextmanager
def network_namespace(path: Path) -> Iterator[None]:
    """The calling thread is in another network namespace; a socket made here stays there."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_LIBC.setns(other, CLONE_NEWNET), f"setns {path}")
        finally:
            os.close(other)
        try:
            yield
        finally:
            _check(_LIBC.setns(own, CLONE_NEWNET), "setns back")
    finally:
        os.close(own)
