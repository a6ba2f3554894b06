"""Which BPF objects a process holds, and whether they still exist, asked of bpf(2) by id."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_BPF = 321 if os.uname().machine == "x86_64" else 280
_BY_ID = {"prog_id": 13, "map_id": 14, "link_id": 30}
_libc = ctypes.CDLL(None, use_errno=True)


class Id(NamedTuple):
    kind: str
    number: int


def held_ids(pid: int | str = "self") -> set[Id]:
    """Programs, maps and links that a process has descriptors of."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                kind, _, value = line.partition(":")
                if kind in _BY_ID:
                    found.add(Id(kind, int(value)))
    return found


def exists(id: Id) -> bool:
    attributes = (ctypes.c_uint32 * 32)(id.number)
    fd = _libc.syscall(_BPF, _BY_ID[id.kind], ctypes.byref(attributes), ctypes.sizeof(attributes))
    if fd >= 0:
        os.close(fd)
        return True
    assert ctypes.get_errno() == errno.ENOENT, os.strerror(ctypes.get_errno())
    return False


def wait_gone(ids: set[Id], seconds: float = 60) -> None:
    """The kernel frees them a moment after the last descriptor."""
    deadline = time.monotonic() + seconds
    while ids := {id for id in ids if exists(id)}:
        assert time.monotonic() < deadline, f"still there: {ids}"
        os.sched_yield()
