"""Many pods at once: all are created, all answer, all are removed, and nothing is left.

Ours and the stock shim's, in turn. What fails is a failure of the benchmark.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import pods, report
from benchmarks.report import Table
from lab import leaks
from lab.container_images import NGINX
from lab.node import Node
from lab.pods import Pod
from lab.show import milliseconds
from lab.steps import say

ABOUT = "pods of nginx that are created, asked and removed all at once, against the stock shim"
ROUNDS = 100
"""Pods."""


def _measure(node: Node, handler: str, count: int) -> tuple[list[float], list[float]]:
    """Nanoseconds from the beginning of all to the running of each, and to the removal of each."""
    specs = [pods.spec(node, handler) for _ in range(count)]
    begin_ns = time.monotonic_ns()

    def make(number: int) -> tuple[Pod, float]:
        pod = Pod(node, specs[number])
        pod.add(pods.container_spec(NGINX))
        return pod, time.monotonic_ns() - begin_ns

    def remove(pod: Pod) -> float:
        pod.remove()
        return time.monotonic_ns() - begin_ns

    with ThreadPoolExecutor(count) as threads:
        made = list(threads.map(make, range(count)))
        for pod, _ in made:
            pod.wait_for_port(pods.PORTS[NGINX.name])
            assert pod.request(port=pods.PORTS[NGINX.name]).status == 200
        if len({pod.shim_pid() for pod, _ in made}) != count:
            raise AssertionError("two pods share a shim")
        begin_ns = time.monotonic_ns()
        removed = list(threads.map(remove, [pod for pod, _ in made]))
    return [took for _, took in made], removed


def run(node: Node, rounds: int) -> report.Report:
    pods.warm_up(node)
    before = leaks.snapshot(node)
    rows: list[list[str]] = []
    samples: dict[str, list[float]] = {}
    for handler in ("runc", "zeropod"):
        made, removed = _measure(node, handler, rounds)
        if left := leaks.settled(node, before, 60):
            raise AssertionError("left behind: " + ", ".join(left))
        say(f"{handler}: created in {max(made) / 1e9:.1f} s, removed in {max(removed) / 1e9:.1f} s")
        rows.append([handler, str(rounds), *map(milliseconds, (max(made), max(removed)))])
        samples |= {f"{handler} created (ns)": made, f"{handler} removed (ns)": removed}
    return report.Report(
        f"many: {rounds} pods at once",
        [Table(["handler", "pods", "all run after", "all removed after"], rows)],
        notes=["every pod answered; nothing was left"],
        samples=samples,
    )
