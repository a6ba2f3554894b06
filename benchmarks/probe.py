"""How fast a kubelet's probes are answered: of a sleeping pod, by zeropod, and of an awake one.

The sleeping pod must still sleep when all are done, or the run fails. A TCP probe is done when its
connection is established and closed.
"""

from __future__ import annotations

import time
from collections import defaultdict

from benchmarks import client, pods, report
from lab.container_images import NGINX
from lab.node import Node
from lab.steps import LabError, say

ABOUT = "answers to HTTP and TCP probes, of a sleeping and of an awake pod, in turn"
ROUNDS = 200
BOUND_MS = 5.0
"""What the median of an HTTP probe of a sleeping pod is held against."""


def _tcp(node: Node, address: str, port: int) -> int:
    """Nanoseconds until a connection is established. It is closed without a byte."""
    with node.tcp_socket() as connection:
        begin_ns = time.monotonic_ns()
        connection.connect((address, port))
        return time.monotonic_ns() - begin_ns


def run(node: Node, rounds: int) -> report.Report:
    pods.warm_up(node)
    port = pods.PORTS[NGINX.name]
    times: dict[str, list[float]] = defaultdict(list)
    with pods.pod(node, NGINX) as sleeper, pods.pod(node, NGINX, idle=pods.NEVER) as awake:
        (app,) = sleeper.containers
        slept = pods.asleep(app)
        for _ in range(rounds):
            for state, pod, status in (("asleep", sleeper, 204), ("awake", awake, 200)):
                answer = client.get(node, pod.address, port, agent=client.PROBE, status=status)
                times[f"HTTP probe, {state}"].append(answer.took_ns)
                times[f"TCP probe, {state}"].append(_tcp(node, pod.address, port))
        if pods.asleep(app) != slept:
            raise LabError("a probe has woken the pod")
    say(f"{rounds} probes of each kind: the pod has slept on")
    table = report.times(times, "time to the answer")
    median = sorted(times["HTTP probe, asleep"])[rounds // 2] / 1e6
    verdict = "met" if median < BOUND_MS else "not met"
    return report.Report(
        "probe: a kubelet's probes",
        [table],
        notes=[f"HTTP probe asleep: p50 {median:.2f} ms, bound {BOUND_MS:.0f} ms: {verdict}"],
        samples={f"{label} (ns)": values for label, values in times.items()},
    )
