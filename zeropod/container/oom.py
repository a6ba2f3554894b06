"""Tells that the kernel has killed a process of a container for want of memory, when it does so.

v1: an eventfd that `cgroup.event_control` knows is written before each kill. It is written once
more when the cgroup is removed.

v2: `memory.events` counts the kills. Its descriptor always has POLLIN, and POLLPRI from a change to
the next read; an event loop asks for the first only, so the descriptor stands in an epoll of its
own, which is readable when it has one. (inotify would do as well, but a node has 128 of them.)

Watched while the container has processes; asleep there is no descriptor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from zeropod.oci.cgroups import Cgroups

log = logging.getLogger(__name__)


class _Watch(Protocol):
    fd: int
    """Readable when there may be something to take."""

    def take(self) -> bool:
        """Whether it has killed since the last call. OSError when the cgroup is gone."""

    def close(self) -> None: ...


class _Eventfd:
    """Of a v1 cgroup. Raises OSError."""

    __slots__ = ("_directory", "fd")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with (directory / "memory.oom_control").open("rb") as control:
                line = f"{self.fd} {control.fileno()}"
                (directory / "cgroup.event_control").write_text(line)
        except BaseException:
            self.close()
            raise

    def take(self) -> bool:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        self._directory.stat()
        return True

    def close(self) -> None:
        os.close(self.fd)


class _Counter:
    """Of a v2 cgroup. Raises OSError."""

    __slots__ = ("_epoll", "_file", "_kills", "fd")

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._epoll = _changes(self._file)
        except BaseException:
            os.close(self._file)
            raise
        self.fd = self._epoll.fileno()
        try:
            self._kills = self._read()
        except BaseException:  # the cgroup goes in this moment
            self.close()
            raise

    def take(self) -> bool:
        before, self._kills = self._kills, self._read()
        return self._kills > before

    def close(self) -> None:
        self._epoll.close()
        os.close(self._file)

    def _read(self) -> int:
        for line in os.pread(self._file, 4096, 0).splitlines():
            if line.startswith(b"oom_kill "):
                return int(line[9:])
        return 0


def _changes(file: int) -> select.epoll:
    """Readable when a file of a cgroup has changed since it was read."""
    epoll = select.epoll()
    try:
        epoll.register(file, select.EPOLLPRI)
    except BaseException:
        epoll.close()
        raise
    return epoll


class Oom:
    """Of one container.

    Args:
        tell: called for each kill; for several that come at once it may be called once.
    """

    __slots__ = ("_loop", "_tell", "_watch")

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._watch: _Watch | None = None

    def begin(self, cgroups: Cgroups | None) -> None:
        """The container's processes are in there from now on."""
        self.close()
        directory = cgroups.directory("memory") if cgroups else None
        if cgroups is None or directory is None:
            return
        try:
            self._watch = (_Counter if cgroups.is_v2 else _Eventfd)(directory)
        except FileNotFoundError:  # without the memory controller nothing is killed by it
            return
        except OSError as error:
            log.warning("an OOM kill in %s would not be told: %s", directory, error)
            return
        self._loop.add_reader(self._watch.fd, self._look)

    def end(self) -> None:
        """The container's processes have ended: tell of what has not been told, and let go."""
        self._look()
        self.close()

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        if self._watch is not None:
            self._loop.remove_reader(self._watch.fd)
            self._watch.close()
            self._watch = None

    def _look(self) -> None:
        if self._watch is None:
            return
        try:
            killed = self._watch.take()
        except OSError:  # the cgroup has been removed
            self.close()
            return
        if killed:
            self._tell()
