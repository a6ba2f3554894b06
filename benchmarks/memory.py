"""What a sleeping pod keeps: memory of every process that is there because of it.

Those are the processes of the node that were not there before the pods: the shim, whatever the shim
keeps running, and the sandbox's pause process. Pages that the shims share with the zygote they were
forked from are the zygote's and are counted once, there. Kernel memory stands beside it: BPF
objects, page tables, the pods' cgroups. The images must not be memory: they lie on a disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import client, pods
from benchmarks.report import Report, Table
from lab import bpf, cgroups, processes, show
from lab.container_images import NGINX
from lab.node import Node
from lab.pods import Pod
from lab.programs import Id, held_ids
from lab.steps import LabError, say

ABOUT = "memory per sleeping pod, asleep and after wake-ups, beside the stock shim's"
ROUNDS = 20
PODS = 20
BOUND = 2_500_000
"""What the private memory of a sleeping pod is held against, in bytes."""
GROWTH = 0.05
"""And how much of it may have come after the settling: caches fill, then nothing may grow."""
SETTLED = 20
"""Wake-ups after which all has been done that is done once."""

_IDLE = "1s"
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes per pod. ``private`` and ``pss`` by the name of the process."""

    private: Mapping[str, float]
    pss: Mapping[str, float]
    page_tables: float
    bpf: float
    cgroup: float
    cgroup_kernel: float

    @property
    def total(self) -> float:
        return sum(self.private.values())


def per_name(
    pids: Iterable[int], name: Callable[[int], str], size: Callable[[int], int], count: int
) -> dict[str, float]:
    """The sizes of processes summed up by name, for each of ``count`` pods."""
    sums: dict[str, int] = defaultdict(int)
    for pid in pids:
        sums[name(pid)] += size(pid)
    return {key: value / count for key, value in sorted(sums.items())}


def footprint(made: list[Pod], before: set[int]) -> Footprint:
    """Of the pods, which sleep; ``before``: the node's processes before the first of them."""
    kept = {pid for pid in cgroups.processes() - before if processes.alive(pid)}
    count = len(made)
    used, kernel = _cgroup_memory(made)
    shims = {pod.shim_pid() for pod in made}
    if not shims <= kept:
        raise LabError("a shim was there before its pod: pods share one, which is not measured")
    return Footprint(
        per_name(kept, name, processes.private_bytes, count),
        per_name(kept, name, processes.proportional_bytes, count),
        sum(map(_page_tables, kept)) / count,
        _bpf_bytes(shims) / count,
        used / count,
        kernel / count,
    )


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _page_tables(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmPTE:"):
            return int(line.split()[1]) << 10
    return 0


def _bpf_bytes(shims: set[int]) -> int:
    """What the kernel charges for the BPF programs and maps that these processes hold."""
    held = {id for pid in shims for id in held_ids(pid)}
    maps = {id.number for id in held if id.kind == "map_id"}
    total: int = 0
    for program in bpf.shown("prog"):
        if Id("prog_id", program["id"]) in held:
            total += program["bytes_memlock"]
            maps |= set(program.get("map_ids", ()))
    for map_ in bpf.shown("map"):
        if map_["id"] in maps:
            total += map_["bytes_memlock"]
    return total


def _cgroup_memory(made: list[Pod]) -> tuple[int, int]:
    """(all memory, the kernel's part) that the cgroups of the pods are charged for."""
    used = kernel = 0
    for pod in made:
        for hierarchy in cgroups.hierarchies():
            folder = hierarchy / cgroups.NAME / "kubepods" / f"pod{pod.spec.uid}"
            if (folder / "memory.usage_in_bytes").exists():
                used += int((folder / "memory.usage_in_bytes").read_text())
                kernel += int((folder / "memory.kmem.usage_in_bytes").read_text())
            elif (folder / "memory.current").exists():
                used += int((folder / "memory.current").read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
                kernel += int(dict(line.split() for line in stat)["kernel"])
    return used, kernel


def zygote() -> int:
    """The process that the shims are forked from, by its title."""
    for pid in cgroups.processes():
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"zeropod-zygote"):
            return pid
    raise LabError("no zygote is running: the shims were not forked from one")


def _on_disk(node: Node) -> str:
    """The file system of the images. Raises LabError where it is memory."""
    findmnt = ["findmnt", "--noheadings", "--output=FSTYPE", "--target=/var/lib/zeropod/i"]
    kind = node.run(findmnt).strip()
    if kind in _IN_MEMORY:
        raise LabError(f"the images lie on {kind}, so a sleeping container still takes memory")
    return kind


def _sleep_all(made: list[Pod]) -> None:
    for pod in made:
        pods.prepared(pod.containers[0])
    pods.rest()


def _wake_all(made: list[Pod]) -> None:
    for pod in made:
        client.get(pod.node, pod.address, pods.PORTS[NGINX.name])
    _sleep_all(made)


def _asleep(made: list[Pod], before: set[int], rounds: int) -> dict[str, Footprint]:
    """What they keep when they have been woken so often: at first, when settled, in the end."""
    found = {"asleep": footprint(made, before)}
    for wake in range(1, rounds + 1):
        _wake_all(made)
        say(f"{len(made)} pods asleep again after wake-up {wake} of {rounds}")
        if wake in (SETTLED, rounds):
            found[f"after {wake} wake-ups"] = footprint(made, before)
    return found


def verdicts(totals: Mapping[str, float], rounds: int) -> list[str]:
    """What the figures are worth: private bytes per pod by column, after that many wake-ups."""
    met = "met" if max(totals.values()) <= BOUND else "not met"
    figures = ", ".join(f"{column} {total / 1e6:.3f} MB" for column, total in totals.items())
    found = [f"private memory: {figures}; bound {BOUND / 1e6:.1f} MB: {met}"]
    if rounds > SETTLED:
        *_, settled, last = totals.values()
        growth = last / settled - 1
        met = "met" if growth < GROWTH else "not met"
        found.append(
            f"growth over the last {rounds - SETTLED} wake-ups: {growth:+.1%}, "
            f"bound {GROWTH:.0%}: {met}"
        )
    return found


def _table(columns: Mapping[str, Footprint]) -> Table:
    shown = list(columns.values())
    names = sorted({name for found in shown for name in found.private})
    rows = [
        ("private memory of all processes", [f.total for f in shown]),
        *((f"  {name}", [f.private.get(name, 0) for f in shown]) for name in names),
        ("proportional memory (PSS)", [sum(f.pss.values()) for f in shown]),
        *((f"  {name}", [f.pss.get(name, 0) for f in shown]) for name in names),
        ("page tables of them", [f.page_tables for f in shown]),
        ("BPF programs and maps", [f.bpf for f in shown]),
        ("cgroups of the pod", [f.cgroup for f in shown]),
        ("  the kernel's part", [f.cgroup_kernel for f in shown]),
    ]
    body = [[label, *(show.size(round(value)) for value in values)] for label, values in rows]
    return Table(["per pod", *columns], body)


def _samples(columns: Mapping[str, Footprint]) -> dict[str, list[float]]:
    found = {}
    for column, footprint_ in columns.items():
        found[f"{column}: private (bytes per pod)"] = [footprint_.total]
        found[f"{column}: PSS (bytes per pod)"] = [sum(footprint_.pss.values())]
        found[f"{column}: BPF (bytes per pod)"] = [footprint_.bpf]
        found[f"{column}: cgroup, kernel (bytes per pod)"] = [footprint_.cgroup_kernel]
    return found


def run(node: Node, rounds: int, count: int) -> Report:
    pods.warm_up(node)
    before = cgroups.processes()
    with ExitStack() as stack:
        made = [stack.enter_context(pods.pod(node, NGINX, idle=_IDLE)) for _ in range(count)]
        _sleep_all(made)
        kind = _on_disk(node)
        columns = _asleep(made, before, rounds)
        parent = zygote()
        zygote_text = (
            f"zygote, once per node: {show.size(processes.private_bytes(parent))} private, "
            f"{show.size(processes.proportional_bytes(parent))} PSS"
        )
    totals = {column: found.total for column, found in columns.items()}
    before = cgroups.processes()
    with ExitStack() as stack:
        made = [stack.enter_context(pods.pod(node, NGINX, handler="runc")) for _ in range(count)]
        columns["stock, app running"] = footprint(made, before)
    return Report(
        f"memory: {count} sleeping pods of nginx",
        [_table(columns)],
        notes=[*verdicts(totals, rounds), zygote_text, f"images lie on {kind}"],
        samples=_samples(columns),
    )
