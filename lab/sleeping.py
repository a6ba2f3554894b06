"""Whether a container sleeps, seen from outside: by its cgroup, its memory and its images on disk.

Nothing here asks zeropod: a container is asleep when no process lives in its cgroup although it was
never stopped. (Zombies are not counted: the first init stays one until the container is deleted.)
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lab import cgroups, waiting
from lab.node import Node
from lab.pods import Container

_IMAGES = "/var/lib/zeropod/i"


class Sleeper:
    """A container that is watched for its sleep."""

    def __init__(self, container: Container) -> None:
        self.container = container
        spec = container.pod.node.cri.info(container.id)["runtimeSpec"]
        assert isinstance(spec, dict)
        path = str(spec["linux"]["cgroupsPath"]).lstrip("/")
        self._cgroups = [hierarchy / path for hierarchy in cgroups.hierarchies()]

    def pids(self) -> set[int]:
        """The container's living processes: empty while it sleeps."""
        found: set[int] = set()
        for folder in self._cgroups:
            with suppress(OSError):
                found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
        return found

    def memory(self) -> int:
        """Bytes of memory of its processes, shared pages by their share (PSS); 0 asleep."""
        return sum(_pss(pid) for pid in self.pids())

    def is_asleep(self) -> bool:
        return not self.pids()

    def wait_asleep(self, timeout: float = 30) -> None:
        """Wait until it sleeps. TimeoutError when it does not."""
        waiting.until(f"sleep of container {self.container.spec.name}", self.is_asleep, timeout)


def _pss(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def images_size(node: Node) -> int:
    """Bytes on disk of all checkpoint images of the node."""
    size = 0
    for path in node.path(_IMAGES).rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            size += status.st_blocks * 512
    return size
