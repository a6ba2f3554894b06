"""A pod that our BPF programs watch: its interface, and what they have noted of its port."""

from __future__ import annotations

import json
from collections.abc import Iterator
from socket import IPPROTO_TCP

from lab import bpf, waiting
from lab.pods import Pod
from lab.programs import held_ids
from lab.steps import run


class Watched:
    """Made once the programs watch the port, which is not before the app listens."""

    def __init__(self, pod: Pod, port: int) -> None:
        self.pod = pod
        self.shim = pod.shim_pid()
        self._key = port.to_bytes(2, "big") + bytes([IPPROTO_TCP, 0])
        link = ["ip", "--json", "link", "show", "eth0"]
        (eth0,) = json.loads(run(["nsenter", f"--net={pod.netns}", *link]))
        self.ifindex: int = eth0["ifindex"]
        self.mac = bytes.fromhex(eth0["address"].replace(":", ""))
        self._ports, self._place = waiting.until(f"watch of port {port}", self._find)

    def last_activity_ns(self) -> int:
        """As the programs have noted it. CLOCK_MONOTONIC; 0: never."""
        return int.from_bytes(dict(_entries(self._ports))[self._place][:8], "little")

    def _find(self) -> tuple[int, bytes] | None:
        """(the map of ports, the place of this one in it)."""
        held = {id.number for id in held_ids(self.shim) if id.kind == "prog_id"}
        names = {found["id"]: found["name"] for found in bpf.shown("map")}
        for program in bpf.shown("prog"):
            if program["id"] in held and program["name"] == "zp_ingress":
                maps = {names[id]: id for id in program["map_ids"] if id in names}
                place = dict(_entries(maps["places"])).get(self._key)
                return (maps["ports"], place) if place else None
        return None


def _entries(map_id: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, as bytes of this machine."""
    for entry in json.loads(run(["bpftool", "--json", "map", "dump", "id", str(map_id)])):
        key, value = (bytes(int(byte, 16) for byte in entry[part]) for part in ("key", "value"))
        yield key, value
