"""Time to the first byte of the request that wakes a container.

In each round, one after the other: a cold start of the same image in a pod of its own (from
CreateContainer to the first byte), a request that wakes the sleeping container, and a request to
it while it is awake. With both origins it is woken twice, in an order drawn anew: by the node,
whose connection is spliced, and from the other pod, whose SYN is parked. The stateful app must
answer each time with the boot id of its first start and the next number, and every app with the
client that it should see.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence

from benchmarks import client, pods, report
from benchmarks.sample import percentiles
from lab.container_images import NGINX, STATEFUL, Image
from lab.node import Node
from lab.pods import Pod
from lab.steps import LabError, say

ABOUT = "time to the first byte of the waking request, beside a cold start and an awake request"
ROUNDS = 50
ORIGINS = ("node",)

_FROM = {"node": "", "pod": ", from a pod"}
_SEED = 1


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


def check_way(answer: client.Answer, address: str, parked: bool) -> None:
    """Raises LabError where a request that woke the app at ``address`` went the other way.

    Spliced, the app sees its own address.
    """
    seen = answer.json()["client"] if answer.body.startswith(b"{") else answer.words()[-1]
    if (seen == address) == parked:
        raise LabError(
            f"the app has seen {seen}: the request was {'spliced' if parked else 'parked'}"
        )


def _measure(
    node: Node, image: Image, rounds: int, origins: Sequence[str]
) -> dict[str, list[float]]:
    port = pods.PORTS[image.name]
    oracle = Oracle() if image is STATEFUL else None
    chance = random.Random(_SEED)
    times: dict[str, list[float]] = {f"{image.name} cold start": []}
    with pods.pod(node, image) as sleeper, pods.pod(node, image, idle=pods.NEVER) as starter:
        (app,) = sleeper.containers
        clients: dict[str, client.Origin] = {"node": node, "pod": starter}
        labels = {
            (origin, case): f"{image.name} {case}{_FROM[origin]}"
            for origin in origins
            for case in ("wake-up", "awake")
        }
        times |= {label: [] for label in labels.values()}
        for attempt in range(1, rounds + 1):
            times[f"{image.name} cold start"].append(_cold_start(starter, image, attempt))
            for origin in chance.sample(origins, len(origins)):
                pods.asleep(app)
                for case in ("wake-up", "awake"):
                    answer = client.get(clients[origin], sleeper.address, port)
                    if oracle:
                        oracle.check(answer)
                    if case == "wake-up":
                        check_way(answer, sleeper.address, origin == "pod")
                    times[labels[origin, case]].append(answer.took_ns)
                woke_ms = times[labels[origin, "wake-up"]][-1] / 1e6
                say(f"{image.name} {attempt}: woke in {woke_ms:.1f} ms{_FROM[origin]}")
    return times


def _ratios(times: Mapping[str, Sequence[float]]) -> list[report.Ratio]:
    """Of waking requests from a pod and from the node, where there are both."""
    pairs = {}
    for image in (NGINX, STATEFUL):
        node, pod = (f"{image.name} wake-up{_FROM[origin]}" for origin in ("node", "pod"))
        if node in times and pod in times:
            pairs[f"{image.name} wake-up"] = list(zip(times[pod], times[node], strict=True))
    return report.ratios(pairs)


def run(node: Node, rounds: int, origins: Sequence[str]) -> report.Report:
    pods.warm_up(node)
    times = {
        **_measure(node, NGINX, rounds, origins),
        **_measure(node, STATEFUL, rounds, origins),
    }
    tables = [report.times(times, "time to the first byte")]
    if ratios := _ratios(times):
        tables.append(report.ratio_table(ratios, "parked / spliced"))
    wakes = rounds * len(origins)
    return report.Report(
        "wake: time to the first byte",
        tables,
        chart=[(label, percentiles(values)[0]) for label, values in times.items()],
        notes=[f"memory was intact in {wakes} of {wakes} wake-ups of the stateful app"],
        samples={f"{label} (ns)": values for label, values in times.items()},
    )
