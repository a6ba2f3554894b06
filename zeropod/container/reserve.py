"""A sleeping container's ports stay its own.

Nobody listens there while it sleeps, so the kernel would give its ports away: to the outgoing
connection of a sibling in the pod, and then the restore could not bind. They are kept out of the
range that such ports are taken from (net.ipv4.ip_local_reserved_ports of the pod's network
namespace, with what was in there), from before the dump on.

A sibling that binds one by name is refused, too, by sockets of ours that are bound and do not
listen. They have SO_REUSEADDR, as CRIU sets it on what it restores: so the restored socket binds
and listens beside them. A sibling that sets it as well gets the port; the kernel knows no way to
have one without the other. Sockets of UDP would get datagrams that are for the app: the activator
keeps those, and closes them in the moment in which the app is back.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeropod.activator import ports
from zeropod.oci.network import joined

log = logging.getLogger(__name__)

_SYSCTL: Final = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_UDP_BOUND: Final = "07"
_TABLES: Final = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM, ports.LISTENING),
    "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, ports.LISTENING),
    "udp": (socket.AF_INET, socket.SOCK_DGRAM, _UDP_BOUND),
    "udp6": (socket.AF_INET6, socket.SOCK_DGRAM, _UDP_BOUND),
}


@dataclass(frozen=True, slots=True)
class Bound:
    """What a socket is bound to."""

    family: socket.AddressFamily
    kind: socket.SocketKind
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.port}/{'tcp' if self.kind is socket.SOCK_STREAM else 'udp'}"


class Reserved:
    """Of one sleep: made before the dump, held after it, released when the container is back.

    In no thread of its own, whose stack and heap a shim would keep.
    """

    def __init__(self, netns: str, bound: Iterable[Bound]) -> None:
        self._netns = netns
        self._bound = tuple(bound)
        self._added: set[int] = set()
        self._sockets: list[socket.socket] = []

    @classmethod
    def take(cls, netns: str, init_pid: int) -> Reserved:
        """Reserve what the container's processes are bound to. Never raises: what cannot be
        reserved is logged, and may be lost."""
        made = cls(netns, bound_by(ports.process_tree(init_pid)))
        made._in_namespace(made._reserve)
        return made

    def hold(self) -> None:
        """The processes are gone: take their place."""
        self._in_namespace(self._bind)

    def lend(self, keep: Callable[[Sequence[int]], None]) -> None:
        """Hand the sockets of UDP to somebody who keeps copies of them."""
        udp = [made for made in self._sockets if made.type is socket.SOCK_DGRAM]
        self._sockets = [made for made in self._sockets if made not in udp]
        try:
            keep([made.fileno() for made in udp])
        except (OSError, ValueError) as error:
            log.warning("UDP ports of a sleeper can be taken by others: %s", error)
        finally:
            for made in udp:
                made.close()

    def release(self) -> None:
        """Idempotent."""
        while self._sockets:
            self._sockets.pop().close()
        if self._added:
            self._in_namespace(self._unreserve)

    def _reserve(self) -> None:
        before = parse(_SYSCTL.read_text())
        self._added = {bound.port for bound in self._bound} - before
        if self._added:
            _SYSCTL.write_text(text(before | self._added))

    def _unreserve(self) -> None:
        _SYSCTL.write_text(text(parse(_SYSCTL.read_text()) - self._added))
        self._added = set()

    def _bind(self) -> None:
        for bound in self._bound:
            made = socket.socket(bound.family, bound.kind)
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if bound.kind is socket.SOCK_DGRAM:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
                if bound.family is socket.AF_INET6:
                    only = bound.address != "::" or self._has_ipv4(bound)
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
                made.bind((bound.address, bound.port))
            except OSError as error:
                made.close()
                log.warning("port %s was taken right after the dump: %s", bound, error.strerror)
            else:
                self._sockets.append(made)

    def _has_ipv4(self, bound: Bound) -> bool:
        """Whether the app has another socket for the same port, so that this one is IPv6's only."""
        return any(
            (other.family, other.kind, other.port) == (socket.AF_INET, bound.kind, bound.port)
            for other in self._bound
        )

    def _in_namespace(self, work: Callable[[], None]) -> None:
        if not self._bound:
            return
        try:
            with joined(self._netns):
                work()
        except OSError as error:
            names = ", ".join(map(str, self._bound))
            log.warning("ports %s in %s: %s", names, self._netns, error)


def bound_by(pids: Iterable[int]) -> set[Bound]:
    """What these processes listen on (TCP), or have bound and not connected (UDP)."""
    pids = tuple(pids)
    inodes = {inode for pid in pids for inode in ports.socket_inodes(pid)}
    found: set[Bound] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for name, (family, kind, state) in _TABLES.items():
                for address, port, inode in ports.sockets(Path(f"/proc/{pid}/net/{name}"), state):
                    if inode in inodes:
                        found.add(Bound(family, kind, _address(family, address), port))
            break
    return found


def parse(ranges: str) -> set[int]:
    """The ports of a list like ``80,8000-8003``."""
    found: set[int] = set()
    for part in filter(None, ranges.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def text(numbers: Iterable[int]) -> str:
    """A list that `parse` reads; never empty, for an empty write does nothing."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in spans) + "\n"


def _address(family: socket.AddressFamily, digits: str) -> str:
    """The kernel writes addresses as numbers of four bytes in the machine's order."""
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    return socket.inet_ntop(family, b"".join(struct.pack("=I", word) for word in words))
