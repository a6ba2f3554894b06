"""What a way of checkpointing and restoring must offer, whichever program does it.

One engine per container. What it needs to know of the running container is in `Target`, taken right
before the sleep; what it makes is in `ImageDir`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zeropod._fastpath._activator import RestorePlan
from zeropod.checkpoint.cgroup import CgroupDir, cgroups_of
from zeropod.checkpoint.image import ImageDir
from zeropod.oci.bundle import Bundle
from zeropod.oci.mounts import mounts_below

Stdio = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Target:
    """A container that is to sleep, seen while its init lives.

    ``cgroups``: the directories of its cgroup, one per hierarchy. ``cgroup_mounts``: mount points
    in the container that show a part of a hierarchy, and the host's directory each one shows.
    ``owner``: (uid, gid) of the container's root as the host sees it. ``mounts``: mount points
    below its root that the host sees, which are the container's for good.
    """

    id: str
    bundle: Bundle
    init_pid: int
    cgroups: tuple[CgroupDir, ...] = ()
    owner: tuple[int, int] = (0, 0)
    cgroup_mounts: tuple[tuple[str, str], ...] = ()
    mounts: frozenset[Path] = frozenset()

    @classmethod
    def of(cls, id: str, bundle: Bundle, init_pid: int) -> Target:
        """Look at the running container. Raises ProcessLookupError when its init is gone."""
        try:
            dirs, mounts = cgroups_of(init_pid)
            owner = _root_outside(init_pid, "uid_map"), _root_outside(init_pid, "gid_map")
        except FileNotFoundError:
            raise ProcessLookupError(f"init {init_pid} of {id} is gone") from None
        name = _cgroup_name(id, bundle.cgroups_path)
        own = tuple(d for d in dirs if d.path.name == name)
        return cls(id, bundle, init_pid, own, owner, mounts, frozenset(mounts_below(bundle.root)))


class Engine(Protocol):
    """`plan` computes all that a wake-up needs; the other two are awaited in the event loop."""

    name: str

    def annotations(self) -> Mapping[str, str]:
        """What must be in the bundle's config.json before the container is created."""

    async def pre_dump(self, target: Target, images: ImageDir) -> None:
        """Write memory ahead of a dump, which then takes less time; the app runs meanwhile.

        Where that is not possible or fails, nothing is written, and the dump is a plain one.

        Raises:
            CheckpointFailed: a dump would fail, too.
        """

    async def checkpoint(self, target: Target, images: ImageDir) -> None:
        """Dump the container; its processes end. On return the images are sealed.

        Raises:
            CheckpointFailed: with the last lines of CRIU's log. The app runs on unharmed.
        """

    def plan(self, target: Target, images: ImageDir, stdio: Stdio) -> RestorePlan:
        """A restore that needs nothing more but to be fired, by native code.

        Raises:
            ImageCorrupt: the images are not what was sealed.
        """

    def fit(self, target: Target, images: ImageDir) -> None:
        """What the images speak of has changed on the disk: make a planned restore right again.

        Raises:
            ImageCorrupt: the images are not what was sealed.
        """

    async def finish(self, target: Target, images: ImageDir, pid: int) -> int:
        """Follow the restore that was fired as process ``pid``. Returns the new init's pid.

        Whatever goes wrong, a cancellation too, everything that the attempt made is killed and
        removed before this ends.

        Raises:
            RestoreFailed: ``retryable`` where it is proved that no instruction of the app ran.
        """

    async def abort(self, target: Target, images: ImageDir, pid: int) -> None:
        """Kill the restore that was fired as process ``pid`` and remove all that it has made."""


def _cgroup_name(id: str, cgroups_path: str) -> str:
    """The last part of the container's cgroup directory.

    A hierarchy that the runtime does not manage leaves the container where its parent is: such a
    directory holds others too, so only those with the container's own name are its.
    """
    slice, colon, rest = cgroups_path.partition(":")
    if colon:  # systemd's form: slice:prefix:name
        prefix, _, name = rest.partition(":")
        return f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return Path(slice).name or id


def _root_outside(pid: int, map_name: str) -> int:
    for line in Path(f"/proc/{pid}/{map_name}").read_text().splitlines():
        inside, outside, _ = map(int, line.split())
        if inside == 0:
            return outside
    return 0
