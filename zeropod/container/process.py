"""The processes of a container: its init, whose pid changes over a sleep, and its execs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from zeropod.container.events import Stdio
from zeropod.container.stdio import ProcessIO
from zeropod.oci.reaper import Exit, Reaper

if TYPE_CHECKING:
    from zeropod.container.remembered import Recording


class Status(Enum):
    """What containerd is told."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    id: str
    exec_id: str
    bundle: str
    pid: int
    status: Status
    stdio: Stdio
    exit: Exit | None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process of the container; ``exec_id`` where it is an exec's, else ""."""

    pid: int
    exec_id: str = ""


class Process:
    """A process that containerd knows. ``pid`` is what containerd is told; 0 before it starts."""

    __slots__ = ("_exited", "id", "io", "pid", "stdio")

    def __init__(self, id: str, stdio: Stdio, loop: asyncio.AbstractEventLoop) -> None:
        self.id = id
        self.stdio = stdio
        self.pid = 0
        self.io: ProcessIO | None = None
        self._exited: asyncio.Future[Exit] = loop.create_future()

    @property
    def exit(self) -> Exit | None:
        """How it ended, None while it has not."""
        return self._exited.result() if self._exited.done() else None

    def set_exit(self, exit: Exit) -> bool:
        """Its end, once. False when it was known before."""
        if self._exited.done():
            return False
        self._exited.set_result(exit)
        return True

    async def wait(self) -> Exit:
        """Returns at the real end only."""
        return await asyncio.shield(self._exited)

    async def drain(self) -> None:
        """Close its stdio when all has been read; see `ProcessIO.drain`."""
        if self.io is not None:
            await self.io.drain()

    def close_io(self) -> None:
        """Close its stdio at once. Idempotent."""
        if self.io is not None:
            self.io.close()


class Init(Process):
    """A container's first process.

    ``pid`` is the first one's for ever; it stays an unreaped zombie over sleeps, so that its number
    is nobody else's. ``live_pid`` is that of the process that runs now, 0 while none does.
    """

    __slots__ = ("live_pid", "pids")

    def __init__(self, id: str, stdio: Stdio, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(id, stdio, loop)
        self.live_pid = 0
        self.pids: list[int] = []

    def runs_as(self, pid: int) -> None:
        """A process that is the container's init now, created or restored."""
        self.pid = self.pid or pid
        self.live_pid = pid
        self.pids.append(pid)

    def reap_restored(self, reaper: Reaper) -> None:
        """Reap those that have ended; all but the first."""
        for pid in self.pids[1:]:
            if pid != self.live_pid:
                reaper.reap(pid)
        self.pids = [pid for pid in self.pids if pid in (self.pid, self.live_pid)]

    def reap(self, reaper: Reaper) -> None:
        """Reap all, at the container's end."""
        for pid in self.pids:
            reaper.reap(pid)
        self.pids.clear()


class Exec(Process):
    """Another process in the container.

    ``spec`` is its OCI process, as JSON. ``over`` is done when its exit has been told, or its start
    has failed; None before it is started. ``live_pid`` is 0 where there is nothing to signal.
    ``recording``: of what it says, where that is to be remembered.
    """

    __slots__ = ("live_pid", "over", "recording", "release", "spec")

    def __init__(self, id: str, stdio: Stdio, loop: asyncio.AbstractEventLoop, spec: bytes) -> None:
        super().__init__(id, stdio, loop)
        self.spec = spec
        self.live_pid = 0
        self.over: asyncio.Future[None] | None = None
        self.release: Callable[[], None] | None = None
        self.recording: Recording | None = None

    def runs_as(self, pid: int) -> None:
        self.pid = self.live_pid = pid

    async def told(self) -> None:
        """Returns when there is no exit of it that is still to be told."""
        if self.over is not None:
            await asyncio.shield(self.over)
