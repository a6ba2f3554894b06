"""Where a process's cgroups are, on v1, on v2, and on both at once."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from zeropod.oci import mountinfo

_EXITING: Final = 0x4  # PF_EXITING


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The directories of one process's cgroups.

    ``unified`` is the v2 one, None without a v2 mount; ``v1`` maps a controller to its directory.
    """

    unified: Path | None
    v1: Mapping[str, Path]

    @classmethod
    def of(cls, pid: int) -> Cgroups:
        """The cgroups of a live process. Raises FileNotFoundError when it is gone.

        One that is about to end counts as gone, for it is shown at the root of every v1 hierarchy.
        """
        unified, v1 = None, {}
        mounts = _mounts()
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            flags = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[6])
        except ProcessLookupError as error:
            raise FileNotFoundError(*error.args) from error
        if flags & _EXITING:
            raise FileNotFoundError(errno.ESRCH, f"process {pid} is ending")
        for line in lines:
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                root = mounts.get(controller)
                if root is None:
                    continue
                if controller:
                    v1[controller] = root / path.lstrip("/")
                else:
                    unified = root / path.lstrip("/")
        return cls(unified, v1)

    @property
    def is_v2(self) -> bool:
        """Whether the controllers are in the unified hierarchy."""
        return "memory" not in self.v1 and "cpu" not in self.v1

    def directory(self, controller: str) -> Path | None:
        return self.unified if self.is_v2 else self.v1.get(controller)

    def processes(self) -> set[int]:
        """The pids in the container's cgroup and in those below it, as this namespace sees them."""
        root = self.directory("freezer") or self.directory("memory") or self.directory("devices")
        found: set[int] = set()
        for file in root.rglob("cgroup.procs") if root else ():
            with contextlib.suppress(OSError):
                found.update(map(int, file.read_text().split()))
        return found


@cache
def _mounts() -> dict[str, Path]:
    """Controller → mount point; "" is the unified hierarchy. They never change on a node."""
    found: dict[str, Path] = {}
    for mount in mountinfo.entries(type="cgroup"):
        if mount.type == "cgroup2":
            found.setdefault("", Path(mount.point))
        elif mount.type == "cgroup":
            for option in mount.options.split(","):
                if option.startswith("name=") or option in _CONTROLLERS:
                    found.setdefault(option, Path(mount.point))
    return found


_CONTROLLERS: Final = frozenset(
    [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    ]
)
