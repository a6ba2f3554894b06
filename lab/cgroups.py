"""The node's cgroups: a name to find all its processes by, and their removal.

The node's daemons live in ``/<name>/daemons`` of one hierarchy: cgroup2 where there is one, else
the v1 ``pids`` controller. Whatever they start stays in there or goes to a pod's cgroup, which the
CRI client puts below ``/<name>`` too. So the group finds also what a killed node left running.

``ZEROPOD_CGROUPS=v2`` gives the node a pure cgroup2 view, whatever the machine has: in its own
mount namespace cgroup2 is all that is mounted. Where the controllers are v1's, it has none of
them: containers run without limits there (`runc_without_controllers`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab import paths
from lab.steps import LabError, run, write_file

VARIABLE: Final = "ZEROPOD_CGROUPS"
_VIEW: Final = Path("/sys/fs/cgroup")
_STRIP: Final = paths.SOURCES / "without_controllers.py"

NAME = f"zeropod-lab-{hashlib.sha256(str(paths.ROOT).encode()).hexdigest()[:8]}"
"""One per lab folder: two checkouts on one machine do not meet."""


def v2_only() -> bool:
    """Whether the node is to see cgroup2 alone."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "v2"):
        raise LabError(f"{VARIABLE}={wanted}: v2, or nothing for what the machine has")
    return wanted == "v2"


def hierarchies() -> list[Path]:
    """Mount points of all cgroup hierarchies that the node sees, cgroup2 first."""
    return _mounted("cgroup2") if v2_only() else _mounted("cgroup2", "cgroup")


def _mounted(*kinds: str) -> list[Path]:
    found: list[tuple[bool, Path]] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind in kinds:
            found.append((kind == "cgroup", Path(mount_point)))
    return [path for _, path in sorted(found)]


def tracking() -> Path:
    """The node's folder in the hierarchy that its processes are found by."""
    for path in hierarchies():
        if (path / "cgroup.controllers").exists() or path.name == "pids":
            return path / NAME
    raise LabError("no cgroup hierarchy is mounted that could hold the node's processes")


def has_controllers() -> bool:
    """Whether the node's containers can have limits."""
    (path, *_) = hierarchies()
    controllers = path / "cgroup.controllers"
    return not v2_only() or "memory" in controllers.read_text().split()


def show_v2_only() -> None:
    """In the mount namespace of the caller, a private one, nothing but cgroup2 is mounted."""
    if not (_VIEW / "cgroup.controllers").exists():
        run(["umount", "--recursive", _VIEW])
        run(["mount", "-t", "cgroup2", "cgroup2", _VIEW])


def runc_without_controllers(folder: Path, runc: Path) -> Path:
    """A runtime in ``folder`` that creates containers without the limits that need a controller.

    The runtime itself refuses to; containerd asks for some, of a sandbox even unasked.
    """
    script = f"""#!/bin/sh
case " $* " in *" create "*) {sys.executable} -IS {_STRIP} "$@" ;; esac
exec {runc} "$@"
"""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "runc", script)
    (folder / "runc").chmod(0o755)
    return folder / "runc"


def enter() -> None:
    """Move the calling process into the node's group; its children are born there.

    With `v2_only` it gets one in every other hierarchy, too, which its containers share: CRIU saves
    all below the cgroup that it finds a process in, also where the node does not see that, and it
    must not be the machine's root.
    """
    others = _mounted("cgroup") if v2_only() else []
    for group in (tracking(), *(path / NAME for path in others)):
        daemons = group / "daemons"
        daemons.mkdir(parents=True, exist_ok=True)
        for child in (group, daemons):
            for file in ("cpuset.cpus", "cpuset.mems"):  # empty at first: nobody may enter
                if (child / file).exists():
                    (child / file).write_text((child.parent / file).read_text())
        (daemons / "cgroup.procs").write_text(str(os.getpid()))


def folders() -> Iterator[Path]:
    """Every cgroup of the node in every hierarchy, children before parents."""
    return _below(hierarchies())


def _below(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        for folder, _, _ in os.walk(root / NAME, topdown=False):
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
    """Remove the node's cgroups where the caller sees them. All their processes must be gone."""
    for folder in list(_below(_mounted("cgroup2", "cgroup"))):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
