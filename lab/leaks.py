"""What a node has, counted, so that a test can say that nothing was left behind.

A snapshot is taken from /proc, cgroupfs, the node's own directories and bpftool; the difference of
two is readable text. What is made once and stays (the zygote, the bridge, containerd's directories)
belongs into the first snapshot: run a pod before it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from lab import bpf, cgroups, waiting
from lab.node import Node

Things = Counter[str]
_FOLDERS = ("/run", "/var/lib/zeropod", "/var/lib/cni", "/var/log/pods")
_STAYS = ("/run/cni/lab/last_reserved_ip", "/run/criu.kdat")
"""Made at first use, whoever uses it: the counter of addresses, CRIU's kernel feature tests."""
_FOLDER_STAYS = "/run/containerd/fifo"
"""Likewise, by `ctr`; what is in it must not stay."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that could leak, by kind; each thing by a name that stays the same."""

    processes: Things
    descriptors: Things
    mounts: Things
    network_namespaces: Things
    interfaces: Things
    bpf: Things
    unix_sockets: Things
    cgroups: Things
    files: Things
    containers: Things

    def more(self, earlier: Snapshot) -> list[str]:
        """What is here and was not there: one line each, empty when nothing is."""
        lines: list[str] = []
        for field in fields(self):
            grown: Things = getattr(self, field.name) - getattr(earlier, field.name)
            lines += [
                f"{field.name}: {thing}" + (f" (+{count})" if count > 1 else "")
                for thing, count in sorted(grown.items())
            ]
        return lines


def snapshot(node: Node) -> Snapshot:
    """Count everything of the node now, and nothing of another one on the same machine."""
    pids = sorted(cgroups.processes())
    proc = Path("/proc") / str(node.pid)
    return Snapshot(
        processes=Counter(map(_command, pids)),
        descriptors=Counter(thing for pid in pids for thing in _descriptors(pid)),
        mounts=Counter(_mounts(proc)),
        network_namespaces=Counter(_network_namespaces(node, pids)),
        interfaces=Counter(
            line.split(":")[0].strip() for line in (proc / "net/dev").read_text().splitlines()[2:]
        ),
        bpf=Counter(f"{key.kind} {key.id} {name}" for key, name in bpf.objects().items()),
        unix_sockets=Counter(_unix_sockets(proc)),
        cgroups=Counter(str(folder) for folder in cgroups.folders()),
        files=Counter(_files(node)),
        containers=Counter(
            [f"sandbox {pod.id}" for pod in node.cri.pods()]
            + [f"container {container.id}" for container in node.cri.containers()]
        ),
    )


def settled(node: Node, earlier: Snapshot, timeout: float = 60) -> list[str]:
    """What there is more than in the earlier snapshot, once it is nothing or the time is over.

    Some of it goes with a delay: containerd removes directories after it answered, the kernel
    frees BPF objects after a grace period.
    """
    lines: list[str] = []

    def nothing_more() -> bool:
        lines[:] = snapshot(node).more(earlier)
        return not lines

    try:
        waiting.until("end of what is left over", nothing_more, timeout)
    except TimeoutError:
        return lines
    return []


def _command(pid: int) -> str:
    try:
        return (
            (Path("/proc") / str(pid) / "cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode()
            .strip()
        )
    except OSError:
        return "(gone)"


def _descriptors(pid: int) -> Iterator[str]:
    """The kinds of a process's descriptors: numbers of sockets and pipes say nothing."""
    folder = Path("/proc") / str(pid) / "fd"
    try:
        found = list(folder.iterdir())
    except OSError:
        return
    for descriptor in found:
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        kind = target.split(":[")[0] if target.startswith(("socket:", "pipe:")) else target
        yield f"{_command(pid).split(' ')[0]}: {kind}"


def _mounts(proc: Path) -> Iterator[str]:
    for line in (proc / "mountinfo").read_text().splitlines():
        parts = line.split(" ")
        kind = parts[parts.index("-") + 1]
        yield f"{parts[4]} ({kind})"


def _network_namespaces(node: Node, pids: Iterable[int]) -> set[str]:
    found = {f"/run/netns/{path.name}" for path in node.path("/run/netns").glob("*")}
    for pid in pids:
        try:
            found.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
        except OSError:
            continue
    return found


def _unix_sockets(proc: Path) -> Iterator[str]:
    for line in (proc / "net/unix").read_text().splitlines()[1:]:
        parts = line.split(maxsplit=7)
        if len(parts) == 8:
            yield parts[7]


def _files(node: Node) -> Iterator[str]:
    root = node.path("/")
    for folder in _FOLDERS:
        for parent, folders, names in os.walk(node.path(folder)):
            inside = f"/{Path(parent).relative_to(root)}"
            for name in (*folders, *names):
                found = f"{inside}/{name}"
                if not found.startswith(_STAYS) and found != _FOLDER_STAYS:
                    yield found
