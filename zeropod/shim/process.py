"""What the shim is to the kernel: session, signals, cgroup, oom score, limits, title.

A child of the zygote starts with what the zygote has; here it gets what it would have had if
containerd had executed it: containerd's cgroup, its oom score plus one, its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from zeropod.errors import InvalidArgument

_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_OOM_SCORE_MAX: Final = 1000
_libc: Final = ctypes.CDLL(None, use_errno=True)


def become_own(environ: Mapping[str, str]) -> None:
    """Leave the zygote's session, signals and environment behind. Working directory: /."""
    with contextlib.suppress(PermissionError):  # an interpreter of our own leads its session
        os.setsid()
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.chdir("/")
    os.environ.clear()
    os.environ.update(environ)


def become_subreaper() -> None:
    """Containers outlive the runtime that made them and become our children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def raise_file_limit() -> None:
    """A thousand held connections need descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def join_cgroup_of(pid: int) -> None:
    """Enter the cgroups of a process, in each hierarchy where they are not ours already."""
    ours = _cgroups("self")
    for key, path in _cgroups(str(pid)).items():
        if ours.get(key) != path:
            _enter(hierarchies()[key] / path.lstrip("/"))


def join_cgroup(path: str) -> None:
    """Enter ``path`` in every hierarchy that has it (the runtime option ShimCgroup).

    Raises:
        InvalidArgument: no hierarchy has it.
    """
    found = [
        folder
        for root in hierarchies().values()
        if (folder := root / path.lstrip("/")).is_dir() and path.strip("/")
    ]
    if not found:
        raise InvalidArgument(f"ShimCgroup {path!r} does not exist")
    for folder in found:
        _enter(folder)


def follow_oom_score(pid: int) -> None:
    """The kernel shall kill the shim before containerd: one more than ``pid`` has."""
    score = min(int(Path(f"/proc/{pid}/oom_score_adj").read_text()) + 1, _OOM_SCORE_MAX)
    own = Path("/proc/self/oom_score_adj")
    if int(own.read_text()) != score:
        own.write_text(str(score))


def dump_stacks_on_signal(log_fd: int) -> None:
    """SIGUSR1 writes the stacks to the log, as with containerd's own shims."""
    faulthandler.register(signal.SIGUSR1, file=log_fd, all_threads=True)


def set_title(name: str, *arguments: str) -> None:
    """Show ``name`` and arguments in ps, as far as the command line we began with has room."""
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    title = b"\0".join(os.fsencode(part) for part in (name, *arguments))[: end - start - 1]
    if start and end > start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, title, len(title))


def _prctl(option: int, value: int | ctypes.Array[ctypes.c_char]) -> None:
    if _libc.prctl(option, value, 0, 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def _cgroups(pid: str) -> dict[str, str]:
    """Controllers (or ``name=…``, or "" for the second version) → path."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {key: path for _, key, path in (line.split(":", 2) for line in lines)}


def hierarchies() -> dict[str, Path]:
    """Controllers (``name=…``, or "" for the second version) → where they are mounted."""
    keys = _cgroups("self")
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mountpoint = Path(before.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault("", mountpoint)
        elif kind == "cgroup":
            words = set(options.split(","))
            for key in keys:
                if key and set(key.split(",")) <= words:
                    found.setdefault(key, mountpoint)
    return found


def _enter(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))
