"""The one place of a shim that starts and reaps processes; by pid only, through pidfds.

The shim is a child subreaper: a container's init becomes its child when the runtime that made it
exits. So a process may end before it is our child, or before anybody has asked for it. Both are no
loss: `watch` looks with WNOWAIT, which leaves the zombie where it is until `reap`, and a process
that still is somebody else's child is looked at again at the next SIGCHLD.

Zombies that nobody watches (a daemonised grandchild of an exec) are swept, but only while no
command is under way: until a runtime has written its pid file, the pid of what it made is known to
nobody. Whoever runs such a command watches that pid before it leaves `command`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from zeropod._fastpath._spawn import spawn
from zeropod.errors import DeadlineExceeded

_MAX_OUTPUT: Final = 1 << 20
_UNKNOWN_STATUS: Final = 255


@dataclass(frozen=True, slots=True)
class Exit:
    """``status``: 0-255, 128 + signal for a process that a signal ended. ``at_ns``: unix time."""

    status: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command gave. ``output``: its stdout and stderr as they came, the last MiB."""

    status: int
    output: bytes


def exit_of(info: os.waitid_result) -> Exit:
    """The shell's form of a waitid result, with the time of now."""
    by_signal = info.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
    status = 128 + info.si_status if by_signal else info.si_status
    return Exit(status, time.time_ns())


class Reaper:
    """One per shim. Methods are for the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, asyncio.Future[Exit]] = {}
        self._pidfds: dict[int, int] = {}
        self._foreign: set[int] = set()
        self._under_way = 0
        # Not loop.add_signal_handler: uvloop keeps SIGCHLD from everybody else.
        signal.signal(signal.SIGCHLD, self._interrupted)

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in tuple(self._pidfds):
            self._unwatch(pid)
        for future in self._watched.values():
            future.cancel()
        self._watched.clear()

    def watch(self, pid: int) -> asyncio.Future[Exit]:
        """The exit of a process, a child of ours now or later. The zombie stays until `reap`.

        Raises:
            ProcessLookupError: no such process, not even a zombie.
        """
        if pid in self._watched:
            return self._watched[pid]
        pidfd = os.pidfd_open(pid)
        future: asyncio.Future[Exit] = self._loop.create_future()
        self._watched[pid] = future
        self._pidfds[pid] = pidfd
        self._loop.add_reader(pidfd, self._ended, pid)
        return future

    def reap(self, pid: int) -> None:
        """Take the zombie away; that of a process that still lives as soon as it has ended.

        Whoever waits for its exit and has not got it is cancelled.
        """
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        self._unwatch(pid)
        future = self._watched.pop(pid, None)
        if future is not None and not future.done():
            future.cancel()

    @contextlib.contextmanager
    def command(self) -> Iterator[None]:
        """Around a command whose offspring's pid is not known yet: nothing is swept meanwhile."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._sweep()

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdio: tuple[int, int, int] | None = None,
        setns: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> Completed:
        """Run a command to its end.

        Without ``stdio`` its output is captured; with it, the command has these descriptors.
        A command that is cancelled or late is killed with its whole process group, and reaped. Of
        one that a signal has ended the others of the group are killed.

        Raises:
            OSError: it could not be started; names the program.
            DeadlineExceeded: it took longer than ``timeout_s`` seconds.
        """
        output = bytearray()
        pipe: tuple[int, int] | None = None
        if stdio is None:
            pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stdio = (-1, pipe[1], pipe[1])
            os.set_blocking(pipe[1], True)
        try:
            pid = spawn(
                list(argv),
                env=os.environ if env is None else env,
                cwd=cwd,
                stdio=stdio,
                setns=setns,
            )
        except BaseException:
            if pipe:
                os.close(pipe[0])
                os.close(pipe[1])
            raise
        if pipe:
            os.close(pipe[1])
            self._loop.add_reader(pipe[0], _drain, pipe[0], output, self._loop)
        try:
            exit = await asyncio.wait_for(asyncio.shield(self.watch(pid)), timeout_s)
            if 128 < exit.status < _UNKNOWN_STATUS:
                await self._kill_group(pid)
        except BaseException as error:
            await self._kill_group(pid)
            if isinstance(error, TimeoutError):
                text = f"{' '.join(argv[:3])} took longer than {timeout_s} s and was killed"
                raise DeadlineExceeded(text) from None
            raise
        finally:
            self.reap(pid)
            if pipe:
                _drain(pipe[0], output, None)
                self._loop.remove_reader(pipe[0])
                os.close(pipe[0])
        return Completed(exit.status, bytes(output[-_MAX_OUTPUT:]))

    async def _kill_group(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        await asyncio.shield(self.watch(pid))

    def _ended(self, pid: int) -> None:
        """A pidfd is readable: the process is a zombie, ours or not yet."""
        info = None
        with contextlib.suppress(ChildProcessError):
            info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is not None:
            self._settle(pid, exit_of(info))
            return
        # Its parent or a tracer holds it. When they let go, a SIGCHLD tells.
        pidfd = self._pidfds[pid]
        self._loop.remove_reader(pidfd)
        try:
            signal.pidfd_send_signal(pidfd, 0)
            self._foreign.add(pid)
        except ProcessLookupError:  # reaped by its parent: how it ended is known to that one only
            self._settle(pid, Exit(_UNKNOWN_STATUS, time.time_ns()))

    def _settle(self, pid: int, exit: Exit) -> None:
        self._unwatch(pid)
        future = self._watched[pid]
        if not future.done():
            future.set_result(exit)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._on_sigchld)

    def _on_sigchld(self) -> None:
        for pid in tuple(self._foreign):
            self._foreign.discard(pid)
            self._ended(pid)
        # Not at once: the news of a process that native code has started is in this same round.
        self._loop.call_soon(self._sweep_idle)

    def _sweep_idle(self) -> None:
        if not self._under_way:
            self._sweep()

    def _unwatch(self, pid: int) -> None:
        self._foreign.discard(pid)
        pidfd = self._pidfds.pop(pid, -1)
        if pidfd >= 0:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def _sweep(self) -> None:
        for pid in children():
            if pid not in self._watched:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def children() -> list[int]:
    """The pids of this process's children, zombies included, whichever thread they belong to."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += map(int, (task / "children").read_text().split())
    return found


def _drain(fd: int, output: bytearray, loop: asyncio.AbstractEventLoop | None) -> None:
    try:
        while chunk := os.read(fd, 65536):
            output += chunk
            if len(output) > 2 * _MAX_OUTPUT:
                del output[:-_MAX_OUTPUT]
    except BlockingIOError:
        return
    if loop is not None:
        loop.remove_reader(fd)
