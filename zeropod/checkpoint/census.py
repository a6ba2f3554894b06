"""Who is in a container, before it is dumped.

`runc checkpoint` dumps init's tree and ends what else is in the container, unnoticed: a live exec,
what an exec left behind, a debugger that entered the namespaces. So everybody in the container's
cgroup or pid namespace must descend from init, or there is no dump.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeropod.checkpoint.cgroup import CgroupDir

_MEMORY: Final = (b"RssAnon:", b"RssShmem:")


@dataclass(frozen=True, slots=True)
class Member:
    """A process in the container, by its pid on the host."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Census:
    """``tree``: init and its descendants. ``strangers``: all others."""

    tree: tuple[Member, ...]
    strangers: tuple[Member, ...]

    def memory_bytes(self) -> int:
        """What a dump must write at most, roughly: memory that no file backs."""
        return sum(_memory(member.pid) for member in self.tree)


def take(init_pid: int, cgroups: tuple[CgroupDir, ...], *, own_pid_namespace: bool) -> Census:
    """Look at every process of the host once.

    ``own_pid_namespace`` is False where the pid namespace is shared with other containers; then
    the cgroup alone decides.
    """
    parents = array("i")  # pid, parent, pid, parent …: the host may have thousands
    inside = {pid for directory in cgroups for pid in directory.pids()}
    namespace = _pid_namespace(init_pid) if own_pid_namespace else None
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdecimal() or (stat := _stat(entry.name)) is None:
                continue
            pid = int(entry.name)
            state, parent = stat.rpartition(b")")[2].split()[:2]
            parents.append(pid)
            parents.append(int(parent))
            if namespace and state not in b"ZX" and _pid_namespace(pid) == namespace:
                inside.add(pid)
    tree = _descendants(init_pid, parents)
    return Census(_members(tree), _members(inside - tree))


def _descendants(init_pid: int, parents: array[int]) -> set[int]:
    """Init and all that come from it."""
    tree = {init_pid}
    size = 0
    while len(tree) > size:
        size = len(tree)
        for at in range(0, len(parents), 2):
            if parents[at + 1] in tree:
                tree.add(parents[at])
    return tree


def _members(pids: set[int]) -> tuple[Member, ...]:
    """Those that are still there."""
    stats = ((pid, _stat(str(pid))) for pid in sorted(pids))
    return tuple(Member(pid, _name(stat)) for pid, stat in stats if stat is not None)


def _stat(pid: str) -> bytes | None:
    """/proc/<pid>/stat; None: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None


def _name(stat: bytes) -> str:
    return stat.rpartition(b")")[0].partition(b"(")[2].decode(errors="replace")


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_MEMORY))
