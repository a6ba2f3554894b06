"""Which ports a container listens on: the sockets its processes hold, matched by inode with those
of its network namespace. UDP ports are never detected, only declared: nothing tells a socket that
serves from one that asks. A container does not sleep before it listens: one that slept in the
middle of its start would be woken to a port that nobody has opened yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

_FIRST_LOOK_S: Final = 0.1
_LAST_LOOK_S: Final = 5.0
LISTENING: Final = "0A"
UNCONNECTED: Final = "07"
"""The states of such sockets in the kernel's tables, of TCP and of UDP."""
_CONNECTED: Final = ("01", "08")
"""ESTABLISHED, and CLOSE_WAIT: its client has said all, the app has not."""


class Declared(NamedTuple):
    """What ``ports-map`` gives a container; empty: nothing is said."""

    tcp: frozenset[int] = frozenset()
    udp: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tcp or self.udp)

    def __str__(self) -> str:
        return ", ".join(
            [*map(str, sorted(self.tcp)), *(f"{port}/udp" for port in sorted(self.udp))]
        )


NOTHING: Final = Declared()


async def detect(init_pid: int, declared: Declared = NOTHING) -> frozenset[int]:
    """The listening TCP ports of the process tree below ``init_pid``, once there are any.

    Where ports are ``declared``: those of TCP, once the app listens on one of any kind; it may be
    one that opens some of them later, or never.

    Looks with back-off, and returns when two looks in a row have seen the same, so that an app that
    opens its ports one after another is seen with all of them. Runs for as long as there are none:
    cancel it.
    """
    pause_s, before = _FIRST_LOOK_S, frozenset[int]()
    while True:
        pids = process_tree(init_pid)
        found = listening_ports(pids)
        if declared:
            found &= declared.tcp
            found |= bound_ports(pids) & declared.udp if declared.udp else frozenset()
        if found and found == before:
            return declared.tcp if declared else found
        if found:
            pause_s = _FIRST_LOOK_S
        before = found
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LAST_LOOK_S)


def why_unknown(declared: Declared) -> str:
    """What `detect` waits for, as a reason not to sleep."""
    if declared:
        return f"it listens on none of the ports that ports-map gives it: {declared}"
    return "it listens on no TCP port"


def listening_ports(pids: Iterable[int]) -> frozenset[int]:
    """The TCP ports, of both families, that these processes have listening sockets on."""
    return _ports(tuple(pids), ("tcp", "tcp6"), LISTENING)


def bound_ports(pids: Iterable[int]) -> frozenset[int]:
    """The UDP ports, of both families, that these processes have sockets on."""
    return _ports(tuple(pids), ("udp", "udp6"), UNCONNECTED)


def connections(pid: int, numbers: Collection[int]) -> int:
    """How many TCP connections of these ports are open in the process's network namespace."""
    return sum(
        port in numbers
        for table in ("tcp", "tcp6")
        for state in _CONNECTED
        for _, port, _ in sockets(Path(f"/proc/{pid}/net/{table}"), state)
    )


def _ports(pids: tuple[int, ...], tables: tuple[str, ...], state: str) -> frozenset[int]:
    inodes = {inode for pid in pids for inode in socket_inodes(pid)}
    for pid in pids:
        with contextlib.suppress(OSError):
            return frozenset(
                port
                for table in tables
                for _, port, inode in sockets(Path(f"/proc/{pid}/net/{table}"), state)
                if inode in inodes
            )
    return frozenset()


def process_tree(pid: int) -> list[int]:
    """``pid`` and all its descendants, as far as they live."""
    tree = [pid]
    for parent in tree:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                tree += map(int, (task / "children").read_text().split())
    return tree


def socket_inodes(pid: int) -> Iterator[str]:
    """The inodes of a process's sockets, as far as it lives."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(link.readlink())
                if target.startswith("socket:["):
                    yield target[8:-1]


def sockets(table: Path, state: str) -> Iterator[tuple[str, int, str]]:
    """(address as the kernel writes it, port, inode) of each socket of a /proc/<pid>/net table."""
    try:
        lines = table.read_text().splitlines()[1:]
    except FileNotFoundError:
        return  # no IPv6
    for line in lines:
        fields = line.split()
        if fields[3] == state:
            address, _, port = fields[1].rpartition(":")
            yield address, int(port, 16), fields[9]
