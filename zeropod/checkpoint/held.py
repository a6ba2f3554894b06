"""What a sleeping container had open below its bind mounts, held while the world changes.

Taken right before the dump: O_PATH descriptors of files, directories and watched inodes (see
`opened`), and of the root of each bind mount. `fit` compares them with what the host has now, and
makes the images, and the mounts in config.json, true again:

found at its path        the same inode: size and mode may differ, CRIU does not check them (of
                         what is mapped it does, until that has made an attempt fail)
under another name       opened by that
not any more             handed over as a ghost (`ghosts`); a directory that was made anew is the
                         new one
a mount's source gone    a copy of the file, or an empty directory, in its place
a mount's file replaced  a copy of the old one: a mount of a file never shows another one

An inotify tells of changes, so that a restore is fitted when it is asked for; where it missed one
the first attempt fails, and the second is fitted. A node has few inotify instances (128, as the
kernel comes) for all that root runs: sleepers take half of them at most. Those without one have
CRIU check sizes and modes. All of it ends with the shim's descriptors; the copies lie with the
images and go with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from zeropod.checkpoint import ghosts
from zeropod.checkpoint.ghosts import Changes, Gone
from zeropod.checkpoint.opened import Bind, Binds, Opened, look
from zeropod.oci import syscalls
from zeropod.oci.bundle import Bundle

log = logging.getLogger(__name__)

_MOST: Final = 1024
_INSTANCES: Final = Path("/proc/sys/fs/inotify/max_user_instances")
_SETTLE_S: Final = 0.1  # who removes a directory may take his time, file by file
_GONE: Final = syscalls.IN_ATTRIB | syscalls.IN_DELETE_SELF | syscalls.IN_MOVE_SELF
_COMES: Final = syscalls.IN_CREATE | syscalls.IN_MOVED_TO


class Held:
    """Of one sleep. ``images``: CRIU's; ``place``: a directory for copies, which outlives it."""

    def __init__(self, bundle: Bundle, images: Path, place: Path) -> None:
        self._bundle = bundle
        self._images = images
        self._place = place
        self._roots: list[tuple[Bind, int]] = []
        self._opened: list[Opened] = []
        self._applied = Changes()
        self._copies: dict[str, Path] = {}
        self._sources: dict[str, str] = {}
        self._distrusted = False
        self._inotify = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def take(
        cls, bundle: Bundle, pids: Iterable[int], init_pid: int, images: Path, place: Path
    ) -> Held:
        """Hold what the processes have. Raises OSError when init is gone."""
        made = cls(bundle, images, place)
        try:
            binds = Binds(init_pid, bundle)
            for bind in binds:
                root = f"/proc/{init_pid}/root{bind.point}"
                made._roots.append((bind, os.open(root, os.O_PATH | os.O_CLOEXEC)))
                made._sources[bind.destination] = str(bind.source)
            most = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
            made._opened += look(pids, binds, most)
            made._listen()
        except BaseException:
            made.close()
            raise
        return made

    def fit(self) -> bool:
        """Make images and mounts true again. Returns whether the images have changed.

        Raises:
            OSError, ValueError: they could not be changed, and are as they were.
        """
        self._fit_mounts()
        changes = self._changes()
        if changes == self._applied:
            return False
        ghosts.apply(self._images, self._images.parent / "dumped", changes)
        self._applied = changes
        told = [f"{path} is gone" for path in changes.gone]
        told += [f"{path} has moved to {new}" for path, new in changes.moved.items()]
        if told:
            log.info("%s: in its sleep %s", self._bundle.path.name, ", ".join(told))
        return True

    def distrust(self) -> None:
        """A restore has failed: CRIU shall not hold a size against what is the same file."""
        self._distrusted = True

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after something has, from `take` on. Does nothing the second time."""
        if self._loop is None and self._inotify >= 0:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._inotify, self._on_change, changed)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._inotify >= 0:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1
        for fd in self._fds():
            os.close(fd)
        self._roots.clear()
        self._opened.clear()

    def _fds(self) -> list[int]:
        return [fd for _, fd in self._roots] + [opened.fd for opened in self._opened]

    def _listen(self) -> None:
        try:
            _leave_instances(self._place.parent.parent)
            self._inotify = syscalls.inotify_init()
            for fd in self._fds():
                syscalls.inotify_add(self._inotify, f"/proc/self/fd/{fd}", _GONE)
        except OSError as error:  # a limit of the kernel's, or ours
            log.warning("%s: not all changes are seen: %s", self._bundle.path.name, error.strerror)

    def _on_change(self, changed: Callable[[], None]) -> None:
        """At once, and what comes soon after it together."""
        assert self._loop
        self._loop.remove_reader(self._inotify)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._inotify, 1 << 16):
                pass
        again = partial(self._loop.add_reader, self._inotify, self._on_change, changed)
        self._timer = self._loop.call_later(_SETTLE_S, again)
        changed()

    # -- files -----------------------------------------------------------------------------------

    def _changes(self) -> Changes:
        found = Changes()
        for opened in self._opened:
            bind, path = opened.bind, opened.path
            now = _stat(bind.outside(path))
            then = os.fstat(opened.fd)
            key = bind.device, then.st_ino
            if path == bind.point:
                if opened.watched:
                    found.watched[key] = path, bind.id
                else:
                    found.loose.add(path)
                continue
            if _same(now, then):
                if self._distrusted or (self._inotify >= 0 and not opened.mapped):
                    found.loose.add(path)
                continue
            if moved := _moved(opened, then):
                if opened.watched:
                    found.watched[key] = moved, bind.id
                else:
                    found.loose.add(path)
                    found.moved[path] = moved
                continue
            if now is not None and stat.S_ISDIR(then.st_mode) and stat.S_ISDIR(now.st_mode):
                if opened.watched:
                    found.watched[key] = path, bind.id
                else:
                    found.loose.add(path)
                continue
            gone = Gone(opened.fd, path, _existing(bind, path), bind.id, bind.device)
            if opened.watched:
                found.gone_watched[key] = gone
            else:
                found.gone[path] = gone
        return found

    # -- mounts ----------------------------------------------------------------------------------

    def _fit_mounts(self) -> None:
        """Each mount has a source that is there, in config.json."""
        wanted = dict(self._sources)
        for bind, fd in self._roots:
            then = os.fstat(fd)
            now = _stat(bind.source, follow=True)
            regular = stat.S_ISREG(then.st_mode)
            if now is not None and (not regular or _same(now, then)):
                wanted[bind.destination] = str(bind.source)
            elif regular or stat.S_ISDIR(then.st_mode):  # nothing can stand in for a device
                wanted[bind.destination] = str(self._copy(bind, fd, then))
                if now is None:
                    self._await(bind.source)
        if wanted == self._sources:
            return
        self._bundle.set_mount_sources(wanted)
        name = self._bundle.path.name
        for bind, _ in self._roots:
            source = wanted[bind.destination]
            if source != self._sources[bind.destination]:
                state = "there again" if source == str(bind.source) else "gone or replaced"
                log.info("%s: %s, source of %s, is %s", name, bind.source, bind.point, state)
        self._sources = wanted

    def _copy(self, bind: Bind, fd: int, then: os.stat_result) -> Path:
        """What stands in for a mount's source; made once."""
        if bind.point in self._copies:
            return self._copies[bind.point]
        self._place.mkdir(mode=0o711, exist_ok=True)
        number = 1
        while (copy := self._place / str(number)).exists():
            number += 1
        try:
            if stat.S_ISREG(then.st_mode):
                shutil.copyfile(f"/proc/self/fd/{fd}", copy)
            else:
                copy.mkdir()
            os.chown(copy, then.st_uid, then.st_gid)
            copy.chmod(stat.S_IMODE(then.st_mode))
            os.utime(copy, ns=(then.st_atime_ns, then.st_mtime_ns))
        except OSError:
            shutil.rmtree(copy, ignore_errors=True)
            copy.unlink(missing_ok=True)
            raise
        self._copies[bind.point] = copy
        return copy

    def _await(self, path: Path) -> None:
        """Hear of it when ``path`` is made anew."""
        if self._inotify < 0:
            return
        while path != path.parent:
            path = path.parent
            with contextlib.suppress(OSError):
                syscalls.inotify_add(self._inotify, str(path), _COMES)
                return


def _leave_instances(sleepers: Path) -> None:
    """Raise OSError where half of the inotify instances are taken.

    ``sleepers``: has a directory for each container of the node that has slept.
    """
    if 2 * sum(1 for _ in sleepers.iterdir()) > int(_INSTANCES.read_text()):
        raise OSError(errno.EMFILE, "half of the node's inotify instances are for others")


def _stat(path: Path, *, follow: bool = False) -> os.stat_result | None:
    """None: nothing is there."""
    try:
        return path.stat(follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return None
        raise


def _same(now: os.stat_result | None, then: os.stat_result) -> bool:
    return now is not None and os.path.samestat(now, then)


def _moved(opened: Opened, then: os.stat_result) -> str:
    """The path, in the container, of a file that has another name now; "" where it has none."""
    if not then.st_nlink:
        return ""
    bind = opened.bind
    path = str(Path(f"/proc/self/fd/{opened.fd}").readlink())
    prefix = bind.point.rstrip("/") + "/"
    # The kernel names a file of a mount that is nowhere mounted any more from the mount's root on.
    for candidate in (path, prefix + path.lstrip("/")):
        if candidate.startswith(prefix) and _same(_stat(bind.outside(candidate)), then):
            return candidate
    return ""


def _existing(bind: Bind, path: str) -> str:
    """The nearest directory above ``path`` that is there, the mount point at last."""
    while path != bind.point:
        path = path.rpartition("/")[0]
        now = _stat(bind.outside(path))
        if now is not None and stat.S_ISDIR(now.st_mode):
            break
    return path
