"""How long a pod takes to start, and an exec in it: our shim against the stock shim, in pairs.

Each pair starts one pod with each handler, in an order drawn anew, and removes it before the next
one begins. RunPodSandbox is one call of CRI; the container is CreateContainer and StartContainer;
the exec is ExecSync of `true`, as a kubelet's exec probe does it, the middle one of three.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict

from benchmarks import pods, report
from benchmarks.sample import Pair
from lab import processes, waiting
from lab.container_images import NGINX
from lab.node import Node
from lab.pods import Container, Pod
from lab.steps import say

ABOUT = "start of a sandbox, a container and an exec, against the stock shim, in pairs"
ROUNDS = 100
BOUND = 1.05
"""What the upper end of each interval is held against."""

OURS, STOCK = "zeropod", "runc"
STEPS = ("RunPodSandbox", "CreateContainer + StartContainer", "both", "ExecSync")
_EXECS = 3
_SEED = 1


def _start(node: Node, handler: str) -> tuple[float, ...]:
    """Start a pod with one container and remove it. Returns nanoseconds of each of ``STEPS``."""
    pod = Pod(node, pods.spec(node, handler))
    try:
        begin_ns = time.monotonic_ns()
        app = pod.add(pods.container_spec(NGINX))
        container_ns = time.monotonic_ns() - begin_ns
        pod.wait_for_port(pods.PORTS[NGINX.name])
        exec_ns = statistics.median(_exec(app) for _ in range(_EXECS))
        shim = pod.shim_pid()
    finally:
        pod.remove()
    waiting.until(f"end of shim {shim}", lambda: not processes.alive(shim))
    return pod.run_ns, container_ns, pod.run_ns + container_ns, exec_ns


def _exec(app: Container) -> int:
    begin_ns = time.monotonic_ns()
    done = app.exec("true")
    took_ns = time.monotonic_ns() - begin_ns
    assert done.exit_code == 0, done
    return took_ns


def run(node: Node, rounds: int) -> report.Report:
    pods.warm_up(node)
    chance = random.Random(_SEED)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for number in range(1, rounds + 1):
        order = chance.sample((OURS, STOCK), 2)
        took = {handler: _start(node, handler) for handler in order}
        for step, *pair in zip(STEPS, took[OURS], took[STOCK], strict=True):
            pairs[step].append((pair[0], pair[1]))
        ms = {handler: took[handler][0] / 1e6 for handler in took}
        say(f"{number}: sandbox {ms[OURS]:.0f} ms, stock {ms[STOCK]:.0f} ms")
    times = {
        f"{step}, {handler}": [pair[side] for pair in values]
        for step, values in pairs.items()
        for side, handler in enumerate((OURS, STOCK))
    }
    found = report.ratios(pairs)
    return report.Report(
        "start: sandbox, container and exec, against the stock shim",
        [report.ratio_table(found, "zeropod / stock"), report.times(times, "step, handler")],
        notes=[ratio.verdict(BOUND) for ratio in found],
        samples={f"{label} (ns)": values for label, values in times.items()},
    )
