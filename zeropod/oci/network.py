"""Network namespaces: one for a container that shall have its own, and a way into another one.

The runtime would make one that ends with the container's processes, and none of what a restore
brings back: runc tells CRIU to leave network devices alone. So the shim makes it and holds it, and
the runtime is told to join.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from threading import Thread
from typing import Final

from zeropod.oci import syscalls

_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1


def new_namespace() -> int:
    """A descriptor, the only one, of a new network namespace whose loopback is up.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.
    """
    made: list[int | OSError] = []

    def make() -> None:  # in a thread, which alone moves there and ends in it
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            made.append(error)

    thread = Thread(target=make, name="network namespace")
    thread.start()
    thread.join()
    (found,) = made
    if isinstance(found, OSError):
        raise found
    return found


@contextlib.contextmanager
def joined(path: str) -> Iterator[None]:
    """The calling thread is in the network namespace at ``path``; what it opens there stays there.

    Nothing may be awaited meanwhile. Raises OSError.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(other, syscalls.CLONE_NEWNET)
        finally:
            os.close(other)
        try:
            yield
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)
