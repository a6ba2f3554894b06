"""What an attempt to restore leaves when it is killed, and its removal.

In this order, because each thing is held by the one before it: the runtime and its CRIU (one
process group), half-restored processes (untraced, they accept connections and never answer; all are
in the container's cgroup, whose directory the runtime has made anew), mounts (CRIU's view of the
cgroups in its work directory, the runtime's bind of the root, what the runtime binds below the root
for the time that CRIU works), the directory in /tmp where CRIU built mounts, the runtime's state,
the cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from zeropod.checkpoint import criu
from zeropod.checkpoint.engine import Target
from zeropod.checkpoint.image import condemned
from zeropod.errors import ZeropodError
from zeropod.oci.mounts import unmount_below
from zeropod.oci.runtime import Runtime

_PATIENCE_S: Final = 10.0


async def clear(target: Target, runtime: Runtime, work: Path, group: int) -> None:
    """Kill and remove all that the restore with work directory ``work`` has made.

    ``group``: the process group of its runtime, 0 where that is known to be gone. Once begun it
    goes on to its end; whoever is cancelled meanwhile is so when it is done.
    """
    task = asyncio.create_task(_clear(target, runtime, work, group))
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


async def _clear(target: Target, runtime: Runtime, work: Path, group: int) -> None:
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # a process in uninterruptible sleep: leave it be
        async with asyncio.timeout(_PATIENCE_S):
            await _empty(target)
    state = Path(runtime.root) / target.id
    for directory in (work, state):
        if directory.exists():
            unmount_below(directory)
    unmount_below(target.bundle.root, target.mounts)
    with contextlib.suppress(ZeropodError):  # there may be nothing that it knows of
        await runtime.delete(target.id, target.bundle.path, force=True)
    for tree in _mount_trees(work):
        with contextlib.suppress(OSError):  # CRIU has removed it already
            tree.rmdir()
    shutil.rmtree(state, ignore_errors=True)
    for cgroup in target.cgroups:
        with contextlib.suppress(OSError):  # held by what could not be killed
            cgroup.remove()


def abandoned_mount_trees() -> set[Path]:
    """Directories in /tmp that belong to no CRIU that lives: none while one does.

    They are listed first: one that is made later is not among them.
    """
    every = set(criu.TEMPORARY.parent.glob(criu.TEMPORARY.name))
    lives = any(_is_criu(entry) for entry in Path("/proc").iterdir())
    return set() if lives else every


def criu_with(store: Path) -> set[int]:
    """CRIUs that have a file open in a container's image directory, or had when it was condemned.

    One that has lost its runtime may hang: who it dumps was killed under it.
    """
    found = set()
    for process in filter(_is_criu, Path("/proc").iterdir()):
        with contextlib.suppress(OSError):  # ended meanwhile
            for fd in (process / "fd").iterdir():
                path = Path(os.readlink(fd))  # noqa: PTH115  (of sockets and pipes, too)
                if store in path.parents or condemned(store) in path.parents:
                    found.add(int(process.name))
    return found


def _mount_trees(work: Path) -> set[Path]:
    """Directories in /tmp that this restore left.

    CRIU names its own in the log only a while after it has made it. One that no log names may be
    another restore's, and removing it would take that one's mounts away.
    """
    return criu.mount_trees(work / "restore.log") | abandoned_mount_trees()


def _is_criu(process: Path) -> bool:
    try:  # binary: a process's name is any bytes
        name = (process / "comm").read_bytes() if process.name.isdecimal() else b""
    except OSError:
        return False  # ended meanwhile
    return name.strip() == criu.BINARY.encode()


async def _empty(target: Target) -> None:
    """Kill the processes in the container's cgroup until there are none."""
    me = os.getpid()
    while True:
        for cgroup in target.cgroups:
            cgroup.thaw()
        pids = {pid for cgroup in target.cgroups for pid in cgroup.pids()} - {me}
        if not pids:
            return
        await _kill(pids)


async def _kill(pids: Iterable[int]) -> None:
    """Kill processes, our children or not, and wait until none of them lives."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        ends = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                end = loop.create_future()
                loop.add_reader(pidfd, _done, end)
                stack.callback(loop.remove_reader, pidfd)
                ends.append(end)
        for end in ends:
            await end


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
