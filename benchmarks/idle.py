"""What sleeping pods cost the processor: the time their processes run while nobody comes.

The scheduler's own account of every thread (/proc/<pid>/task/<tid>/schedstat, nanoseconds), before
and after each of some minutes. The zygote and containerd stand apart: they are there once. So does
whatever was called on the shims meanwhile, which is nothing here: no kubelet, no metrics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event

from benchmarks import memory, pods
from benchmarks.report import Report, Table
from lab import cgroups
from lab.container_images import NGINX
from lab.node import Node
from lab.steps import LabError, say

ABOUT = "processor time of sleeping pods (rounds: minutes)"
ROUNDS = 3
PODS = 50
BOUND_MS = 5.0
"""What a sleeping pod is held against, in milliseconds of processor time per minute."""

_MINUTE_S = 60.0
_NS_PER_MS = 1e6


def run_ns(pid: int) -> int:
    """How long the threads of a process have run. Raises LabError where the kernel cannot tell."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except ProcessLookupError:
            continue
        except FileNotFoundError:
            raise LabError("the kernel keeps no schedstat (CONFIG_SCHED_INFO)") from None
    return total


def spent_ms(before: Mapping[int, int], after: Mapping[int, int]) -> dict[int, float]:
    """Milliseconds between two readings in nanoseconds, of who is in both."""
    return {pid: (after[pid] - before[pid]) / _NS_PER_MS for pid in before if pid in after}


def _read(pids: set[int]) -> dict[int, int]:
    found = {}
    for pid in pids:
        with suppress(FileNotFoundError):
            found[pid] = run_ns(pid)
    return found


def run(node: Node, rounds: int, count: int) -> Report:
    pods.warm_up(node)
    others = cgroups.processes()
    with ExitStack() as stack:
        made = [stack.enter_context(pods.pod(node, NGINX)) for _ in range(count)]
        for pod in made:
            pods.prepared(pod.containers[0])
        pods.rest()
        kept = cgroups.processes() - others
        once = {"zygote": memory.zygote(), "containerd": node.containerd_pid}
        names = {pid: memory.name(pid) for pid in kept} | {pid: name for name, pid in once.items()}
        minutes: dict[str, list[float]] = defaultdict(list)
        for minute in range(1, rounds + 1):
            before = _read(set(names))
            Event().wait(_MINUTE_S)
            spent = spent_ms(before, _read(set(names)))
            for name in sorted(set(names.values())):
                shared = 1 if name in once else count
                total = sum(ms for pid, ms in spent.items() if names[pid] == name)
                minutes[name].append(total / shared)
            minutes["per pod"].append(sum(spent[pid] for pid in kept if pid in spent) / count)
            say(f"{count} pods asleep for minute {minute} of {rounds}")
        for pod in made:
            if pod.containers[0].live_pids():
                raise LabError("a pod woke meanwhile: its time is not that of a sleeper")
    mean = sum(minutes["per pod"]) / rounds
    verdict = "met" if mean < BOUND_MS else "not met"
    return Report(
        f"idle: {count} sleeping pods of nginx",
        [_table(minutes, once)],
        notes=[f"{mean:.2f} ms per pod and minute, bound {BOUND_MS:.0f} ms: {verdict}"],
        samples={f"{name} (ms per minute)": values for name, values in minutes.items()},
    )


def _table(minutes: Mapping[str, list[float]], once: Mapping[str, int]) -> Table:
    rows = []
    for name, values in minutes.items():
        where = "once per node" if name in once else "per pod"
        label = "all processes of a pod" if name == "per pod" else f"{name}, {where}"
        figures = (sum(values) / len(values), min(values), max(values))
        rows.append([label, *(f"{ms:.2f} ms" for ms in figures)])
    return Table(["processor time per minute", "mean", "least", "most"], rows)
