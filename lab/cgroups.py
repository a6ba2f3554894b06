"""The node's cgroups: a name to find all its processes by, and their removal.

The node's daemons live in ``/<name>/daemons`` of one hierarchy: cgroup2 where there is one, else
the v1 ``pids`` controller. Whatever they start stays in there or goes to a pod's cgroup, which the
CRI client puts below ``/<name>`` too. So the group finds also what a killed node left running.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from lab import paths
from lab.steps import LabError

NAME = f"zeropod-lab-{hashlib.sha256(str(paths.ROOT).encode()).hexdigest()[:8]}"
"""One per lab folder: two checkouts on one machine do not meet."""


def hierarchies() -> list[Path]:
    """Mount points of all cgroup hierarchies, cgroup2 first."""
    found: list[tuple[bool, Path]] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            found.append((kind == "cgroup", Path(mount_point)))
    return [path for _, path in sorted(found)]


def tracking() -> Path:
    """The node's folder in the hierarchy that its processes are found by."""
    for path in hierarchies():
        if (path / "cgroup.controllers").exists() or path.name == "pids":
            return path / NAME
    raise LabError("no cgroup hierarchy is mounted that could hold the node's processes")


def enter() -> None:
    """Move the calling process into the node's group; its children are born there."""
    group = tracking() / "daemons"
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text(str(os.getpid()))


def folders() -> Iterator[Path]:
    """Every cgroup of the node in every hierarchy, children before parents."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / NAME, topdown=False):
            yield Path(folder)


def processes() -> set[int]:
    """The pids of everything in the node's cgroups."""
    pids: set[int] = set()
    for folder in folders():
        try:
            pids |= {int(line) for line in (folder / "cgroup.procs").read_text().split()}
        except OSError as error:
            if error.errno not in (
                errno.ENOENT,
                errno.ENODEV,
            ):  # it is removed
                raise
    return pids - {0}


def remove() -> None:
    """Remove the node's cgroups. All their processes must be gone."""
    for folder in list(folders()):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
