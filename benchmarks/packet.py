"""What a packet of an established connection to an awake app costs: our BPF programs alone.

The programs of a running pod's shim, with its maps, run by the kernel on one frame again and again
(BPF_PROG_TEST_RUN), in and out in turn. A frame that is no IP packet shows what the measurement
itself takes. That the others are taken for traffic of the app, the time of its last activity shows.
"""

from __future__ import annotations

import ipaddress
import json
import statistics
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks import pods
from benchmarks.report import Report, Table
from benchmarks.watched import Watched
from lab.container_images import NGINX
from lab.node import Node
from lab.programs import programs
from lab.steps import LabError

ABOUT = "our BPF programs per packet of an established connection, in and out"
ROUNDS = 21
REPEAT = 100_000
"""How often the kernel runs a program for one figure."""
BOUND_NS = 300
"""What the median of each way is held against."""

_WAYS = {"in": "zp_ingress", "out": "zp_egress"}
_NEIGHBOUR_MAC = bytes.fromhex("020000000001")
_FLOOR = "no IP packet (the measurement itself)"
_ARP = 0x0806
_PASS = -1
_IDLE = "1h"


class End(NamedTuple):
    mac: bytes
    address: str
    port: int


def frame(source: End, dest: End) -> bytes:
    """A segment with one byte of data; checksums are left out, for nobody looks at them."""
    segment = (
        struct.pack(">HHIIBBHHH", source.port, dest.port, 7, 9, 5 << 4, 0x18, 512, 0, 0) + b"x"
    )
    ends = [ipaddress.ip_address(end.address) for end in (source, dest)]
    if ends[0].version == 4:
        kind = 0x0800
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 1 << 14, 64, 6, 0)
    else:
        kind = 0x86DD
        head = struct.pack(">IHBB", 6 << 28, len(segment), 6, 64)
    packet = head + b"".join(end.packed for end in ends) + segment
    return dest.mac + source.mac + kind.to_bytes(2, "big") + packet


def _frames(watched: Watched, peers: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], bytes]:
    """By (who is at the other end, way); ``peers``: their addresses, IPv4 first."""
    empty = watched.mac + _NEIGHBOUR_MAC + _ARP.to_bytes(2, "big") + bytes(46)
    found = {(_FLOOR, way): empty for way in _WAYS}
    for peer, addresses in peers.items():
        for address, own in zip(addresses, watched.pod.addresses, strict=True):
            label = f"{'IPv6' if ':' in own else 'IPv4'}, {peer}"
            app = End(watched.mac, own, pods.PORTS[NGINX.name])
            other = End(_NEIGHBOUR_MAC, address, 40000)
            found[label, "in"], found[label, "out"] = frame(other, app), frame(app, other)
    return found


def _node_addresses(node: Node) -> list[str]:
    """Those by which pods are reached, IPv4 first."""
    (bridge,) = json.loads(node.run(["ip", "--json", "address", "show", "dev", "cni0"]))
    found = [each["local"] for each in bridge["addr_info"] if each["scope"] == "global"]
    return sorted(found, key=lambda address: ":" in address)


def _measure(
    watched: Watched, frames: Mapping[tuple[str, str], bytes], rounds: int
) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        found = programs(watched.pod.netns, watched.shim)
        for program in found.values():
            stack.callback(program.close)
        for number in range(rounds):
            for (label, way), data in frames.items():
                before_ns = watched.last_activity_ns() if number == 0 else 0
                result = found[_WAYS[way]].run(data, ifindex=watched.ifindex, repeat=REPEAT)
                times[label, way].append(result.ns)
                if result.verdict != _PASS or result.frame != data:
                    raise LabError(f"{label}, {way}: the frame does not pass as it is")
                if number == 0 and (watched.last_activity_ns() > before_ns) == (label == _FLOOR):
                    raise LabError(f"{label}, {way}: is not taken for what it is")
    return times


def run(node: Node, rounds: int) -> Report:
    pods.warm_up(node)
    with pods.pod(node, NGINX, idle=_IDLE) as app, pods.pod(node, NGINX, handler="runc") as other:
        peers = {"another pod": other.addresses, "the node": _node_addresses(node)}
        watched = Watched(app, pods.PORTS[NGINX.name])
        times = _measure(watched, _frames(watched, peers), rounds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    labels = list(dict.fromkeys(label for label, _ in times))
    body = [
        [label, str(rounds), *(f"{medians[label, way]:.0f} ns" for way in _WAYS)]
        for label in labels
    ]
    worst = {way: max(ns for (_, of), ns in medians.items() if of == way) for way in _WAYS}
    notes = [
        f"{way}: at most {ns:.0f} ns, bound {BOUND_NS} ns: {'met' if ns <= BOUND_NS else 'not met'}"
        for way, ns in worst.items()
    ]
    return Report(
        f"packet: of an established connection, {REPEAT:,} runs for each figure",
        [Table(["packet of a connection with", "n", *(f"{way}, median" for way in _WAYS)], body)],
        notes=notes,
        samples={f"{label}, {way} (ns)": values for (label, way), values in times.items()},
    )
