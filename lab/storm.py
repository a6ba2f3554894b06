"""Openers at random moments around the scale-down of pods that hardly ever rest.

    python -m lab.storm --cycles 10000       # make storm
    … --seed 7                               # the same dice again (not the same race)

Each pod runs the app whose memory is an oracle. Again and again it is left alone for about as long
as it takes to fall asleep, then one to four clients open a connection at once, from the node (which
is spliced) or from another pod (which is parked). Every one must be answered by the same memory,
each with a count of its own; nothing may be refused or reset. A cycle is a sleep and a wake-up, as
the shims count them. Who had to send again while he connected is counted: that happens to who is
parked where a dump and a wake-up together take longer than a second, on a machine that is too busy.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lab import kernel, node, paths
from lab.container_images import STATEFUL
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Pod
from lab.steps import LabError, say

_IDLE_MS = 300
_PAUSE_S = (0.2, 0.9)
_BUCKETS_MS = (1, 10, 50, 100, 150, 200, 300, 500, 700, 900, 1500, 3000, 10000)
_TIMEOUT_S = 60.0
_COUNT_S = 2.0
_TOTAL_RETRANS = 100  # in struct tcp_info, linux/tcp.h
_PREFIX = "zeropod.ctrox.dev/"


@dataclass
class Found:
    """What clients met, by where they came from: waits in milliseconds, and what went wrong."""

    waits: dict[str, list[float]] = field(default_factory=lambda: {"node": [], "pod": []})
    failures: list[str] = field(default_factory=list)
    wakes: int = 0
    again: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        shown = [f"cycles {self.wakes}", f"failures {len(self.failures)}"]
        shown += [f"  {text}" for text in self.failures[:50]]
        shown.append("waits for the first byte, from the node (spliced) and from a pod (parked):")
        counts = {origin: Counter(map(_bucket, waits)) for origin, waits in self.waits.items()}
        for bucket in (*_BUCKETS_MS, 0):
            name = f"up to {bucket} ms" if bucket else f"over {_BUCKETS_MS[-1]} ms"
            shown.append(f"  {name:>15}  {counts['node'][bucket]:6}  {counts['pod'][bucket]:6}")
        for origin, waits in self.waits.items():
            if waits:
                ordered = sorted(waits)
                p50, p99 = (ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
                shown.append(
                    f"{origin}: n {len(waits)}, p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
                    f"max {ordered[-1]:.1f} ms, {self.again[origin]} had to send again"
                )
        return shown


def _bucket(wait_ms: float) -> int:
    return next((limit for limit in _BUCKETS_MS if wait_ms <= limit), 0)


class _Client(http.client.HTTPConnection):
    """A connection from a network namespace."""

    def __init__(self, netns: Path, address: str) -> None:
        super().__init__(address, 8080, timeout=_TIMEOUT_S)
        self._netns = netns
        self.again = 0

    def connect(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with kernel.network_namespace(self._netns):
            made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(_TIMEOUT_S)
        made.connect((self.host, 8080))
        self.sock = made
        info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS + 4)
        (self.again,) = struct.unpack_from("=I", info, _TOTAL_RETRANS)


class Storm:
    """``origins``: the network namespaces that clients come from."""

    def __init__(self, running: Node, origins: dict[str, Path], seed: int) -> None:
        self._node = running
        self._origins = origins
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self.found = Found()
        self.over = threading.Event()

    def drive(self, pod: Pod, seed: int) -> None:
        """Ask one pod until the storm is over, or it is not what it was."""
        dice = random.Random(seed)
        boot, count = "", 0
        with ThreadPoolExecutor(4) as clients:
            while not self.over.wait(dice.uniform(*_PAUSE_S)):
                asked = [
                    clients.submit(self._ask, pod, dice.choice([*self._origins]), dice.random())
                    for _ in range(dice.choice([1, 1, 1, 2, 4]))
                ]
                answers = [answer for one in asked if (answer := one.result()) is not None]
                counts = sorted(int(str(answer["count"])) for answer in answers)
                boots = {str(answer["boot_id"]) for answer in answers}
                expected = [*range(count + 1, count + 1 + len(asked))]
                if counts != expected or (boot and boots != {boot}):
                    met = f"boot ids {boots} and counts {counts}, not {boot} and {expected}"
                    self._failed(pod, met)
                    return
                (boot,), count = boots, counts[-1]

    def _ask(self, pod: Pod, origin: str, which: float) -> dict[str, object] | None:
        address = pod.addresses[which < 0.5]
        client = _Client(self._origins[origin], address)
        began = time.monotonic()
        try:
            client.request("GET", "/", headers={"Connection": "close"})
            response = client.getresponse()
            wait_ms = (time.monotonic() - began) * 1e3
            answer = dict(json.loads(response.read()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._failed(pod, f"from {origin} to {address}: {type(error).__name__}: {error}")
            return None
        finally:
            client.close()
        with self._lock:
            self.found.waits[origin].append(wait_ms)
            self.found.again[origin] += client.again > 0
        return answer

    def _failed(self, pod: Pod, what: str) -> None:
        text = f"pod {pod.spec.name} after {self.found.wakes} cycles: {what}"
        say(f"storm: {text}")
        with self._lock:
            self.found.failures.append(text)

    def _wakes(self, pods: Sequence[Pod]) -> int:
        """As the pods' shims have counted them."""
        command = self._node.command(
            [paths.VENV / "bin/zeropod", "ps", "--json", "--timeout", "60"]
        )
        done = subprocess.run(command, capture_output=True, check=True)
        ids = {pod.containers[0].id for pod in pods}
        return sum(int(one["wakes"]) for one in json.loads(done.stdout) if one["id"] in ids)

    def run(self, pods: Sequence[Pod], cycles: int) -> None:
        threads = [
            threading.Thread(target=self.drive, args=(pod, self._dice.randrange(2**32)))
            for pod in pods
        ]
        for thread in threads:
            thread.start()
        spoken = time.monotonic()
        try:
            while self.found.wakes < cycles and any(thread.is_alive() for thread in threads):
                self.over.wait(_COUNT_S)
                self.found.wakes = self._wakes(pods)
                if time.monotonic() - spoken > 30:
                    spoken = time.monotonic()
                    failed = len(self.found.failures)
                    say(f"storm: {self.found.wakes} of {cycles} cycles, {failed} failures")
        except KeyboardInterrupt:
            say("storm: broken off; what has been found so far:")
        finally:
            self.over.set()
            for thread in threads:
                thread.join()


def storm(pods: int, cycles: int, seed: int) -> Found:
    """Build what is needed, run it, count."""
    node.build()
    with Node.start("lab.storm") as running:

        def make(name: str, idle: str) -> Pod:
            annotations = {f"{_PREFIX}scaledown-duration": idle}
            spec = PodSpec(name, annotations=annotations, cgroup_parent=running.cgroup_parent)
            pod = Pod(running, spec)
            pod.add(ContainerSpec("stateful", STATEFUL.reference))
            return pod

        client = make("client", "0")
        made = [make(f"storm-{number}", f"{_IDLE_MS}ms") for number in range(pods)]
        for pod in made:
            pod.wait_for_port(8080)
        (inside, *_) = client.containers[0].live_pids()
        origins = {
            "node": Path(f"/proc/{running.pid}/ns/net"),
            "pod": Path(f"/proc/{inside}/ns/net"),
        }
        this = Storm(running, origins, seed)
        say(f"storm: {pods} pods, {cycles} cycles, seed {seed}")
        this.run(made, cycles)
        for pod in (*made, client):
            pod.remove()
        return this.found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. 0 when there were as many cycles as asked for, and everybody was answered."""
    parser = argparse.ArgumentParser(prog="python -m lab.storm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cycles", type=int, default=10_000, help="wake-ups in all [10000]")
    parser.add_argument("--pods", type=int, default=20, help="how many at a time [20]")
    parser.add_argument("--seed", type=int, default=None, help="of the dice [drawn, and printed]")
    given = parser.parse_args(argv)
    seed = random.randrange(2**32) if given.seed is None else given.seed
    try:
        found = storm(given.pods, given.cycles, seed)
    except LabError as error:
        print(f"storm: {error}", file=sys.stderr)
        return 1
    print("\n".join(found.lines()))
    return 1 if found.failures or found.wakes < given.cycles else 0


if __name__ == "__main__":
    sys.exit(main())
