"""BPF objects by bpf(2): whether they still exist; what else is asked of them has lab.programs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import kernel
from lab import programs as lab_programs
from lab.programs import Id, Program, held_ids, opened

__all__ = ["Id", "Program", "exists", "held_ids", "inside", "programs", "wait_gone"]


def exists(id: Id) -> bool:
    try:
        with opened(id):
            return True
    except FileNotFoundError:
        return False


def wait_gone(ids: set[Id], seconds: float = 60) -> None:
    """The kernel frees them a moment after the last descriptor."""
    deadline = time.monotonic() + seconds
    while ids := {id for id in ids if exists(id)}:
        assert time.monotonic() < deadline, f"still there: {ids}"
        os.sched_yield()


def _netns(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")


def programs(netns_fd: int) -> dict[str, Program]:
    """Those that this process has attached, by their names. To be closed."""
    return lab_programs.programs(_netns(netns_fd))


@contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """The calling thread, for a moment, in another network namespace."""
    with kernel.network_namespace(_netns(netns_fd)):
        yield
