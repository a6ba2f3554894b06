"""Processes of the node, as /proc shows them: alive or not, memory, who serves a socket."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")


def alive(pid: int) -> bool:
    """Whether a thread of the process lives: the first may be a zombie while others still end,
    and with the last one go the files that they share.

    The kernel's count says so; a listing of the threads may end early while threads end.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()
    state, threads = fields[0], int(fields[17])
    return state not in ("Z", "X") or threads > 1


def private_bytes(pid: int) -> int:
    """Memory that only this process has: what its end would give back."""
    return _rollup(pid, "Private_Clean:") + _rollup(pid, "Private_Dirty:")


def written_bytes(pid: int) -> int:
    """Memory that this process has written to: private whoever else runs the same program."""
    return _rollup(pid, "Private_Dirty:")


def proportional_bytes(pid: int) -> int:
    """PSS: private memory and a fair part of what is shared."""
    return _rollup(pid, "Pss:")


def _rollup(pid: int, key: str) -> int:
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0


def holders_of_socket(net: Path, path: str, pids: set[int]) -> set[int]:
    """Which of the processes have the unix socket that listens at ``path``.

    ``net`` is a /proc/<pid>/net folder of the network namespace that the socket was made in.
    """
    inodes = set()
    for line in (net / "unix").read_text().splitlines()[1:]:
        parts = line.split(maxsplit=7)
        if len(parts) == 8 and parts[7] == path and parts[5] == "01":
            inodes.add(f"socket:[{parts[6]}]")
    return {pid for pid in pids if inodes & _targets(pid)}


def _targets(pid: int) -> set[str]:
    found = set()
    try:
        for descriptor in (_PROC / str(pid) / "fd").iterdir():
            found.add(str(descriptor.readlink()))
    except OSError:
        return found
    return found
