"""What our BPF programs cost a request to an awake app.

One pod of nginx, its shim's own programs: they are taken off its eth0 and put back, which is the
only difference between the two kinds of requests. Each round has a block of requests with the
programs and one without, of each case, in an order drawn anew; that the programs were there in the
one and not in the other, the time of the last activity shows that they note. The client does
nothing but take the time.
"""

from __future__ import annotations

import random
import socket
import time
from collections import defaultdict
from contextlib import closing

from benchmarks import client, pods, report
from benchmarks.sample import Pair
from benchmarks.watched import Watched
from lab.container_images import NGINX
from lab.node import Node
from lab.pods import Pod
from lab.programs import Hooks
from lab.steps import LabError, say

ABOUT = "requests to an awake pod with our BPF programs against without, in turn (rounds: of 25)"
ROUNDS = 200
BOUND = 1.03
"""What the upper end of each interval is held against."""

BLOCK = 25
"""Requests of a kind, one after another: to take programs off takes longer than some requests."""

_IDLE = "1h"
_SEED = 1
_RESAMPLES = 2_000
_TIMEOUT_S = 30.0
_WITH, _WITHOUT = "with BPF", "without"


def _fresh(origin: client.Origin, address: str, port: int) -> list[float]:
    """Nanoseconds from connect() to the first byte, over a connection each."""
    return [client.get(origin, address, port).took_ns for _ in range(BLOCK)]


def _kept(origin: client.Origin, address: str, port: int) -> list[float]:
    """Nanoseconds from request to answer, all over one connection, which was used before."""
    request = f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    times = []
    with origin.tcp_socket() as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect((address, port))
        for _ in range(1 + BLOCK):
            begin_ns = time.monotonic_ns()
            connection.sendall(request)
            reply = connection.recv(65536)
            times.append(float(time.monotonic_ns() - begin_ns))
            if not reply.startswith(b"HTTP/1.1 200 "):
                raise LabError(f"{address}:{port} answered {reply!r}")
    return times[1:]


CASES = {"new connection": _fresh, "keep-alive": _kept}


def _check(watched: Watched, other: Pod, on: bool) -> None:
    """Raises LabError where the programs are there and should not be, or the reverse.

    By a request from another pod: whether one from the node is activity takes a while to find out.
    """
    before_ns = watched.last_activity_ns()
    client.get(other, watched.pod.address, pods.PORTS[NGINX.name])
    if (watched.last_activity_ns() > before_ns) != on:
        raise LabError(f"requests are {'not ' if on else ''}seen by the programs")


def _measure(watched: Watched, other: Pod, rounds: int) -> dict[str, list[Pair]]:
    address, port = watched.pod.address, pods.PORTS[NGINX.name]
    origins: dict[str, client.Origin] = {"the node": watched.pod.node, "another pod": other}
    chance = random.Random(_SEED)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    with closing(Hooks(watched.shim, watched.pod.netns, watched.ifindex)) as hooks:
        for number in range(1, rounds + 1):
            took: dict[tuple[str, bool], list[float]] = {}
            for on in chance.sample((True, False), 2):
                hooks.put() if on else hooks.take()
                _check(watched, other, on)
                for origin in chance.sample(list(origins), len(origins)):
                    for case, ask in CASES.items():
                        took[f"{case}, from {origin}", on] = ask(origins[origin], address, port)
            for label in {label: None for label, _ in took}:
                pairs[label] += zip(took[label, True], took[label, False], strict=True)
            if number % 20 == 0:
                say(f"{number} of {rounds} rounds")
    return pairs


def run(node: Node, rounds: int) -> report.Report:
    pods.warm_up(node)
    with (
        pods.pod(node, NGINX, idle=_IDLE) as app,
        pods.pod(node, NGINX, handler="runc") as other,
    ):
        watched = Watched(app, pods.PORTS[NGINX.name])
        pairs = _measure(watched, other, rounds)
    pairs = dict(sorted(pairs.items()))
    found = report.ratios(pairs, block=BLOCK, resamples=_RESAMPLES)
    times = {
        f"{label}, {kind}": [pair[side] for pair in values]
        for label, values in pairs.items()
        for side, kind in enumerate((_WITH, _WITHOUT))
    }
    return report.Report(
        "awake: requests to an awake nginx, with BPF and without",
        [report.ratio_table(found, f"{_WITH} / {_WITHOUT}"), report.times(times, "request")],
        notes=[ratio.verdict(BOUND) for ratio in found],
        samples={f"{label} (ns)": values for label, values in times.items()},
    )
