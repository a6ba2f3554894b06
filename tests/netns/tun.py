"""A device of the pod whose far end is the test: packets begin with their IP header."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.netns import bpf

if TYPE_CHECKING:
    from scapy.packet import Packet

    from tests.netns.conftest import Namespace

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
V4, V6 = ("10.8.0.2", "10.8.0.1"), ("fd08::2", "fd08::1")  # far, and the pod


@contextmanager
def device(here: Namespace, name: str) -> Iterator[int]:
    """The descriptor by which its packets are read and written."""
    with bpf.inside(here.fd):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    here.run("ip", "link", "set", name, "up")
    here.run("ip", "address", "add", f"{V4[1]}/24", "dev", name)
    here.run("ip", "address", "add", f"{V6[1]}/64", "dev", name, "nodad")
    try:
        yield fd
    finally:
        os.close(fd)


def next_tcp(fd: int) -> TCP:
    """The next TCP segment that comes out of the pod."""
    while select.select([fd], [], [], 60)[0]:
        raw = os.read(fd, 4096)
        found = (IP if raw[0] >> 4 == 4 else IPv6)(raw)
        if TCP in found:
            return found[TCP]
    raise AssertionError("nothing comes out of the pod")


def answer(fd: int, packet: Packet) -> TCP:
    """What TCP answers to a packet that goes in."""
    os.write(fd, bytes(packet))
    return next_tcp(fd)
