"""The `runc` engine: `runc checkpoint` and `runc restore`, or those of a compatible runtime.

runc runs inside the network, IPC and UTS namespaces that the container shares with its pod: CRIU
then takes them for its own, neither dumps nor makes them, and the restored container is where it
was. Its mount points of cgroup directories, which `runc restore` would make anew from its own
cgroup, are pinned to the container's through CRIU's configuration file; that file wins over what
runc asks for (the annotation org.criu.config names it).

Through runc the notification "the processes are about to run" is not seen. So images count as
consumed from the moment a restore is fired, and the mark is taken back only when CRIU's log proves
that it gave up before (`criu.judge`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_IFCHR
from typing import Final

from zeropod._fastpath._activator import RestorePlan
from zeropod.checkpoint import census, criu, debris, progress
from zeropod.checkpoint.dirty import DirtyTracking
from zeropod.checkpoint.engine import Stdio, Target
from zeropod.checkpoint.held import Held
from zeropod.checkpoint.image import ImageDir
from zeropod.checkpoint.progress import Patience
from zeropod.errors import (
    CheckpointFailed,
    DeadlineExceeded,
    ImageCorrupt,
    RestoreFailed,
    RuntimeFailed,
    ZeropodError,
)
from zeropod.oci.bundle import Bundle
from zeropod.oci.reaper import Reaper
from zeropod.oci.runtime import Runtime

log = logging.getLogger(__name__)

_SHARED: Final = ("network", "ipc", "uts")
_DEADLINE_S: Final = 10.0
_BYTES_PER_S: Final = 256 << 20
_DUMP_DEADLINE_S: Final = 60.0  # a killed dump may kill the app, a dump that hangs does for certain
_DUMP_BYTES_PER_S: Final = 16 << 20
_SPARE_BYTES: Final = 16 << 20  # what a dump writes besides memory


class RuncEngine:
    """See `engine.Engine`."""

    name = "runc"

    def __init__(self, runtime: Runtime, reaper: Reaper, bundle: Bundle) -> None:
        self._runtime = runtime
        self._reaper = reaper
        self._config = criu.config_file(bundle.path)
        self._dirty = DirtyTracking(reaper)

    def annotations(self) -> Mapping[str, str]:
        return {criu.CONFIG_ANNOTATION: str(self._config)}

    async def pre_dump(self, target: Target, images: ImageDir) -> None:
        try:
            if not await self._dirty.works(target.id):
                return
        except (DeadlineExceeded, OSError) as error:
            log.warning("%s: no pre-dump: criu check: %s", target.id, error)
            return
        _, stopped, memory_bytes = _look(target, images)
        work = images.make_pre_dump(target.owner)
        options = ["--pre-dump", *_options(target)]
        try:
            await self._dump(target, images.pre_dump, work, options, memory_bytes)
        except (RuntimeFailed, DeadlineExceeded) as error:
            _let_run(target, stopped)
            images.drop_pre_dump()
            said = criu.reason(work / "dump.log") or error
            log.warning("%s: the pre-dump failed, a plain dump follows: %s", target.id, said)
            return
        if _free_bytes(images) < memory_bytes + _SPARE_BYTES:  # all of it may have changed
            images.drop_pre_dump()
            log.warning("%s: no room for a pre-dump and a dump: the dump is a plain one", target.id)

    async def checkpoint(self, target: Target, images: ImageDir) -> None:
        if criu.find() is None:
            raise CheckpointFailed(
                f"checkpoint {target.id}: criu is not installed or not in PATH "
                f"({os.environ.get('PATH', '')}); install CRIU 4.2 or newer"
            )
        pids, stopped, memory_bytes = _look(target, images)
        images.held = _hold(target, images, pids)
        options = _options(target)
        if images.parent:
            options += ["--parent-path", images.parent]
        dump_log = images.dump / "dump.log"
        try:
            await self._dump(target, images.images, images.dump, options, memory_bytes)
        except (RuntimeFailed, DeadlineExceeded) as error:
            if not (criu.dumped(dump_log) and _ended(target.init_pid)):
                _let_run(target, stopped)
                raise _failed(target, images, criu.reason(dump_log) or str(error)) from error
            # The dump is whole and the processes are gone; what failed was the runtime's tidying.
            log.warning("%s: after the dump: %s", target.id, error)
            with contextlib.suppress(ZeropodError, OSError):  # the images are what counts now
                await debris.clear(target, self._runtime, images.dump, 0)
        _fit(images)
        images.seal(target.owner)

    async def _dump(
        self, target: Target, images: Path, work: Path, options: list[str], memory_bytes: int
    ) -> None:
        self._config.write_text(criu.config())
        with _shared_namespaces(target.bundle) as fds:
            await self._runtime.checkpoint(
                target.id,
                target.bundle.path,
                image_path=images,
                work_path=work,
                setns=fds,
                extra=options,
                env=criu.environment(),
                timeout_s=_DUMP_DEADLINE_S + memory_bytes / _DUMP_BYTES_PER_S,
            )

    def plan(self, target: Target, images: ImageDir, stdio: Stdio) -> RestorePlan:
        self.fit(target, images)
        work = images.new_attempt()
        self._config.write_text(criu.config(_pinned(target, images)))
        argv = self._runtime.restore_argv(
            target.id,
            target.bundle.path,
            image_path=images.images,
            work_path=work,
            pid_file=work / "init.pid",
            extra=["--no-subreaper", *_options(target)],
        )
        with _shared_namespaces(target.bundle) as fds:
            return RestorePlan(
                argv,
                env=criu.environment(),
                cwd=str(target.bundle.path),
                stdio=stdio,
                setns=fds,
                ready_path=work / criu.STATS_RESTORE,
            )

    def fit(self, target: Target, images: ImageDir) -> None:
        images.verify()  # before a seal calls right what is there
        if _fit(images):
            images.seal(target.owner)

    async def finish(self, target: Target, images: ImageDir, pid: int) -> int:
        images.mark_consumed()
        with self._reaper.command():
            try:
                # Done while the runtime starts up: CRIU opens the images some 15 ms later.
                images.verify()
                return await self._follow(target, images, pid)
            except BaseException as error:
                await self.abort(target, images, pid)
                failure = _restore_failure(target, images, error)
                if failure is None:
                    raise
                if failure.retryable:
                    images.unmark()
                    if images.held is not None:
                        images.held.distrust()
                raise failure from error

    async def abort(self, target: Target, images: ImageDir, pid: int) -> None:
        await debris.clear(target, self._runtime, images.attempt, pid)
        if pid:
            self._reaper.reap(pid)

    async def _follow(self, target: Target, images: ImageDir, pid: int) -> int:
        work = images.attempt
        restore_log = work / "restore.log"
        deadline_s = _DEADLINE_S + images.size_bytes / _BYTES_PER_S
        try:
            status = await self._status(target, pid, deadline_s)
        except ProcessLookupError:  # reaped before it was watched: its log has the answer
            status = 0 if criu.let_go(restore_log) else 255
        if status:
            said = criu.reason(restore_log) or self._runtime.last_error(target.bundle.path)
            raise RestoreFailed(said or f"the runtime ended with status {status}")
        self._reaper.reap(pid)
        try:
            return int((work / "init.pid").read_text())
        except (OSError, ValueError) as error:
            raise RestoreFailed(f"the runtime left no pid: {error}") from error

    async def _status(self, target: Target, pid: int, deadline_s: float) -> int:
        """The status of the runtime. Raises TimeoutError when nothing has moved for that long."""
        loop = asyncio.get_running_loop()
        end = self._reaper.watch(pid)
        patience = Patience(deadline_s, loop.time())
        # Not wait_for: cancelled in the moment of the end it would return as if nothing was.
        while not (await asyncio.wait([end], timeout=patience.interval_s))[0]:
            # The runtime moves CRIU into the container's cgroup before that reads the images.
            pids = {pid, *(member for cgroup in target.cgroups for member in cgroup.pids())}
            if patience.spent(loop.time(), progress.bytes_read(pids)):
                raise TimeoutError
        return end.result().status


def _restore_failure(
    target: Target, images: ImageDir, error: BaseException
) -> RestoreFailed | None:
    """What to tell of an attempt that has been cleared away. None: it was cancelled."""
    restore_log = images.attempt / "restore.log"
    tail = criu.log_tail(restore_log)
    if isinstance(error, ImageCorrupt):
        return RestoreFailed(f"restore {target.id}: {error}")
    proved = criu.judge(restore_log) is criu.Verdict.NEVER_RAN
    if isinstance(error, TimeoutError):
        text = f"restore {target.id}: did not get on in time and was killed"
        return RestoreFailed(text, retryable=proved, log_tail=tail)
    if isinstance(error, RestoreFailed):
        text = f"restore {target.id}: {error}"
        return RestoreFailed(text, retryable=proved, log_tail=tail)
    return None


def _hold(target: Target, images: ImageDir, pids: Sequence[int]) -> Held:
    try:
        place = images.path.parent / "mounts"
        return Held.take(target.bundle, pids, target.init_pid, images.images, place)
    except OSError as error:
        raise CheckpointFailed(f"checkpoint {target.id}: open files: {error.strerror}") from error


def _fit(images: ImageDir) -> bool:
    """Whether images had to be changed. Where that fails CRIU says what does not fit."""
    try:
        return images.held is not None and images.held.fit()
    except (ZeropodError, OSError, ValueError) as error:
        log.warning("%s: is not fitted to what has changed: %s", images.path, error)
        return False


def _look(target: Target, images: ImageDir) -> tuple[list[int], frozenset[int], int]:
    """Raise CheckpointFailed where a dump would lose a process or does not fit on the disk.

    Returns all processes, those that are stopped by the app's own will, and the bytes of memory.
    """
    own = target.bundle.namespace_path("pid") == ""
    found = census.take(target.init_pid, target.cgroups, own_pid_namespace=own)
    if found.strangers:
        names = ", ".join(map(str, found.strangers))
        raise CheckpointFailed(
            f"checkpoint {target.id}: not of init's tree, would be lost: {names}"
        )
    memory_bytes = found.memory_bytes()
    free, needed = _free_bytes(images), memory_bytes + _SPARE_BYTES
    if free < needed:
        raise CheckpointFailed(
            f"checkpoint {target.id}: {needed >> 20} MiB are needed and {free >> 20} MiB are free "
            f"on the disk of {images.path.parent.parent}"
        )
    stopped = (member.pid for member in found.tree if _state(member.pid) == "T")
    return [member.pid for member in found.tree], frozenset(stopped), memory_bytes


def _free_bytes(images: ImageDir) -> int:
    disk = os.statvfs(images.path)
    return disk.f_bfree * disk.f_frsize


def _failed(target: Target, images: ImageDir, reason: str) -> CheckpointFailed:
    if _free_bytes(images) < _SPARE_BYTES // 4:
        reason = f"no space left on the disk of {images.path.parent.parent} ({reason})"
    tail = criu.log_tail(images.dump / "dump.log")
    return CheckpointFailed(f"checkpoint {target.id}: {reason}", tail)


def _let_run(target: Target, stopped: frozenset[int]) -> None:
    """After a failed dump: nothing of the container stays frozen, or stopped that was not."""
    for directory in target.cgroups:
        directory.thaw()
    own = target.bundle.namespace_path("pid") == ""
    for member in census.take(target.init_pid, target.cgroups, own_pid_namespace=own).tree:
        with contextlib.suppress(ProcessLookupError):
            if member.pid not in stopped and _state(member.pid) == "T":
                os.kill(member.pid, signal.SIGCONT)


def _ended(pid: int) -> bool:
    return _state(pid) in "ZX"


def _state(pid: int) -> str:
    """The letter of /proc/<pid>/stat; X when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0]


def _options(target: Target) -> list[str]:
    """soft makes the cgroup namespace that the container had; ignore keeps it in the host's."""
    own_namespace = target.bundle.namespace_path("cgroup") == ""
    return ["--file-locks", "--manage-cgroups-mode", "soft" if own_namespace else "ignore"]


def _pinned(target: Target, images: ImageDir) -> Iterator[tuple[str, str]]:
    """Mounts that the runtime would make anew from the host's.

    Masked files get a null device of their own: runc binds the host's /dev/null over them, and a
    container that may chmod its /proc/keys could then chmod the host's /dev/null. (On a nodev file
    system it cannot be opened, which masks as well.) With a cgroup namespace of its own CRIU makes
    the mounts of cgroup directories itself.
    """
    null = images.path.parent / "null"
    with contextlib.suppress(FileExistsError):
        os.mknod(null, S_IFCHR | 0o666, os.makedev(1, 3))
        null.chmod(0o666)
    yield "/dev/null", str(null)
    if target.bundle.namespace_path("cgroup") != "":
        yield from target.cgroup_mounts


@contextlib.contextmanager
def _shared_namespaces(bundle: Bundle) -> Iterator[tuple[int, ...]]:
    """Descriptors of the namespaces that the container joins by path."""
    with contextlib.ExitStack() as stack:
        fds = []
        for kind in _SHARED:
            if path := bundle.namespace_path(kind):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                fds.append(fd)
        yield tuple(fds)
