"""Time to the first byte of the request that wakes a container.

In each round, one after the other: a cold start of the same image in a pod of its own (from
CreateContainer to the first byte), a request that wakes the sleeping container, and a request to
it while it is awake. The stateful app must answer each time with the boot id of its first start and
the next number.
"""

from __future__ import annotations

import time
from collections import defaultdict

from benchmarks import client, pods, report
from benchmarks.sample import percentiles
from lab.container_images import NGINX, STATEFUL, Image
from lab.node import Node
from lab.pods import Pod
from lab.steps import LabError, say

ABOUT = "time to the first byte of the waking request, beside a cold start and an awake request"
ROUNDS = 50


class Oracle:
    """Holds the stateful app to its memory: one boot id, and a counter that misses nothing."""

    def __init__(self) -> None:
        self._boot_id: object = None
        self._count = 0

    def check(self, answer: client.Answer) -> None:
        """Raises LabError where an answer is not the one that follows the last."""
        state = answer.json()
        self._boot_id = self._boot_id or state["boot_id"]
        self._count += 1
        found, expected = (state["boot_id"], state["count"]), (self._boot_id, self._count)
        if found != expected:
            raise LabError(f"the app came back as {found}, not as {expected}: memory was lost")


def _cold_start(pod: Pod, image: Image, attempt: int) -> int:
    """End the pod's container and start it anew. Returns nanoseconds to the first byte."""
    old = pod.containers.pop()
    old.stop(0)
    old.remove()
    begin_ns = time.monotonic_ns()
    pod.add(pods.container_spec(image, attempt))
    answer = client.first_answer(pod.node, pod.address, pods.PORTS[image.name])
    return answer.first_byte_ns - begin_ns


def _measure(node: Node, image: Image, rounds: int) -> dict[str, list[float]]:
    port = pods.PORTS[image.name]
    oracle = Oracle() if image is STATEFUL else None
    times: dict[str, list[float]] = defaultdict(list)
    with pods.pod(node, image) as sleeper, pods.pod(node, image, idle=pods.NEVER) as starter:
        (app,) = sleeper.containers
        for attempt in range(1, rounds + 1):
            times[f"{image.name} cold start"].append(_cold_start(starter, image, attempt))
            pods.asleep(app)
            for case in ("wake-up", "awake"):
                answer = client.get(node, sleeper.address, port)
                if oracle:
                    oracle.check(answer)
                times[f"{image.name} {case}"].append(answer.took_ns)
            say(
                f"{image.name} {attempt}: woke in {times[f'{image.name} wake-up'][-1] / 1e6:.1f} ms"
            )
    return times


def run(node: Node, rounds: int) -> report.Report:
    pods.warm_up(node)
    times = {**_measure(node, NGINX, rounds), **_measure(node, STATEFUL, rounds)}
    table = report.times(times, "time to the first byte")
    medians = [(row[0], percentiles(times[row[0]])[0]) for row in table.rows]
    return report.Report(
        "wake: time to the first byte",
        [table],
        chart=medians,
        notes=[f"memory was intact in {rounds} of {rounds} wake-ups of the stateful app"],
        samples={f"{label} (ns)": values for label, values in times.items()},
    )
