"""What the shim is to the kernel: session, signals, cgroup, oom score, limits, title.

A child of the zygote starts with what the zygote has; here it gets what it would have had if
containerd had executed it: containerd's cgroup and its oom score plus one. What can be done to
another process takes its pid, because a helper does it for the shim (main.py).
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
from pathlib import Path
from typing import Final

from zeropod.errors import InvalidArgument
from zeropod.oci import mountinfo

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PF_EXITING: Final = 0x4
_OOM_SCORE_MAX: Final = 1000
_COMM: Final = ctypes.create_string_buffer(b"containerd-shim")
_libc: Final = ctypes.CDLL(None, use_errno=True)


def prepare() -> None:
    """Once per program, before any fork: what every shim has in common."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # as containerd's shims do
    os.environ.clear()


def become_leader() -> None:
    """A session of our own, and the processes that containers leave become our children."""
    try:  # not contextlib, which would touch memory of every shim
        os.setsid()
    except PermissionError:
        pass  # an interpreter of our own leads its session already
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_NAME, _COMM)


def die_with(parent: int) -> None:
    """SIGKILL when ``parent`` ends; at once if it has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def is_ending(pid: int) -> bool:
    """Whether ``pid`` has ended or is about to, from the moment when the kernel takes it apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(fields[6]) & _PF_EXITING)


def raise_file_limit(model: int, pid: int) -> int:
    """A thousand held connections need descriptors; what ``pid`` starts shall not have so many.

    Returns the soft limit of ``model``, for those.
    """
    soft, _ = resource.prlimit(model, resource.RLIMIT_NOFILE)
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    return soft if soft != resource.RLIM_INFINITY else hard


def join_cgroup_of(model: int, pid: int) -> None:
    """Put ``pid`` into the cgroups of ``model``, in each hierarchy where it is not already."""
    ours = _cgroups(pid)
    for key, path in _cgroups(model).items():
        if ours.get(key) != path:
            _enter(hierarchies()[key] / path.lstrip("/"), pid)


def join_cgroup(path: str, pid: int) -> None:
    """Put ``pid`` into ``path`` in every hierarchy that has it (the runtime option ShimCgroup).

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
        _enter(folder, pid)


def follow_oom_score(model: int, pid: int) -> None:
    """The kernel shall kill ``pid`` before ``model``: its score is one more."""
    score = min(int(Path(f"/proc/{model}/oom_score_adj").read_text()) + 1, _OOM_SCORE_MAX)
    own = Path(f"/proc/{pid}/oom_score_adj")
    if int(own.read_text()) != score:
        own.write_text(str(score))


def set_title(pid: int, name: str, *arguments: str) -> None:
    """Show ``name`` and arguments in ps, as far as the command line ``pid`` began with has room."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    room = end - start
    if start and room > 0:
        title = b"\0".join(os.fsencode(part) for part in (name, *arguments))[: room - 1]
        memory = os.open(f"/proc/{pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(memory, title.ljust(room, b"\0"), start)
        finally:
            os.close(memory)


def _prctl(option: int, value: int | ctypes.Array[ctypes.c_char]) -> None:
    if _libc.prctl(option, value, 0, 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def _cgroups(pid: int) -> dict[str, str]:
    """Controllers (or ``name=…``, or "" for the second version) → path."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {key: path for _, key, path in (line.split(":", 2) for line in lines)}


def hierarchies() -> dict[str, Path]:
    """Controllers (``name=…``, or "" for the second version) → where they are mounted."""
    keys = _cgroups(os.getpid())
    found: dict[str, Path] = {}
    for mount in mountinfo.entries(type="cgroup"):
        if mount.type == "cgroup2":
            found.setdefault("", Path(mount.point))
        elif mount.type == "cgroup":
            words = set(mount.options.split(","))
            for key in keys:
                if key and set(key.split(",")) <= words:
                    found.setdefault(key, Path(mount.point))
    return found


def _enter(folder: Path, pid: int) -> None:
    (folder / "cgroup.procs").write_text(str(pid))
