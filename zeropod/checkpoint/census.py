"""Who is in a container, before it is dumped.

`runc checkpoint` dumps init's tree and ends what else is in the container, unnoticed: a live exec,
what an exec left behind, a debugger that entered the namespaces. So everybody in the container's
cgroup or pid namespace must descend from init, or there is no dump.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeropod.checkpoint.cgroup import CgroupDir

_MEMORY: Final = ("RssAnon:", "RssShmem:")


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
    names: dict[int, str] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    inside = {pid for directory in cgroups for pid in directory.pids()}
    namespace = _pid_namespace(init_pid) if own_pid_namespace else None
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        pid = int(entry.name)
        try:
            name, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
        except OSError:
            continue  # ended meanwhile
        state, parent = rest.split()[:2]
        names[pid] = name.partition("(")[2]
        children[int(parent)].append(pid)
        if namespace and state not in "ZX" and _pid_namespace(pid) == namespace:
            inside.add(pid)
    tree: set[int] = set()
    todo = [init_pid]
    while todo:
        pid = todo.pop()
        tree.add(pid)
        todo += children[pid]

    def members(pids: set[int]) -> tuple[Member, ...]:
        return tuple(Member(pid, names[pid]) for pid in sorted(pids) if pid in names)

    return Census(members(tree), members(inside - tree))


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_MEMORY))
