"""The cgroup directories of a container, found from its init; v1, v2 and both at once.

A process's place in each hierarchy is in /proc/<pid>/cgroup; where that is on this host is found
by matching hierarchies in /proc/self/mountinfo. A container without a cgroup namespace of its own
has bind mounts of its own directories; `runc restore` makes these again from the cgroup of the runc
that restores, which would show a part of the host's tree, so they are recorded here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zeropod.oci import mountinfo
from zeropod.oci.mountinfo import MountEntry


@dataclass(frozen=True, slots=True)
class CgroupDir:
    """One directory. ``unified``: it is in the v2 hierarchy."""

    path: Path
    unified: bool

    def pids(self) -> set[int]:
        """Every process in it and below. A directory that is gone has none."""
        found: set[int] = set()
        for directory in self.walk():
            with contextlib.suppress(OSError):
                found |= set(map(int, (directory / "cgroup.procs").read_text().split()))
        return found

    def walk(self) -> Iterator[Path]:
        """This directory and all below it, the deepest first."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            yield Path(directory)

    def thaw(self) -> None:
        """Undo a freeze that somebody left behind."""
        name, value = ("cgroup.freeze", "0") if self.unified else ("freezer.state", "THAWED")
        file = self.path / name
        with contextlib.suppress(OSError):
            if file.read_text().strip() not in (value, ""):
                file.write_text(value)

    def remove(self) -> None:
        """Remove it and all below. Raises OSError while a process is in it."""
        for directory in self.walk():
            with contextlib.suppress(FileNotFoundError):
                directory.rmdir()


def cgroups_of(pid: int) -> tuple[tuple[CgroupDir, ...], tuple[tuple[str, str], ...]]:
    """(cgroup directories of a process, its bind mounts of cgroup directories).

    Directories of the host's root cgroup are left out: nobody may kill or remove what is in there.

    Raises:
        FileNotFoundError: the process is gone.
    """
    ours = list(mountinfo.entries(type="cgroup"))
    dirs: dict[Path, CgroupDir] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        mount = _hierarchy(ours, number, controllers)
        inside = _below(mount, path) if mount else None
        if mount and inside and inside != Path(mount.point):
            dirs[inside] = CgroupDir(inside, mount.type == "cgroup2")
    shown: list[tuple[str, str]] = []
    for shared in mountinfo.entries(pid, type="cgroup"):
        if shared.root == "/":
            continue
        same = next((m for m in ours if m.device == shared.device), None)
        source = _below(same, shared.root) if same else None
        if source:
            shown.append((shared.point, str(source)))
    return tuple(dirs.values()), tuple(shown)


def _hierarchy(mounts: list[MountEntry], number: str, controllers: str) -> MountEntry | None:
    if number == "0":
        return next((m for m in mounts if m.type == "cgroup2"), None)
    wanted = set(controllers.split(","))
    v1 = (m for m in mounts if m.type == "cgroup")
    return next((m for m in v1 if wanted <= set(m.options.split(","))), None)


def _below(mount: MountEntry, path: str) -> Path | None:
    """Where ``path`` of a hierarchy is below one of its mounts, which may show a part only."""
    try:
        return Path(mount.point) / Path(path).relative_to(mount.root)
    except ValueError:
        return None
