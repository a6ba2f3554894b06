"""A network namespace for a container that shall have one of its own.

The runtime would make one that ends with the container's processes, and none of what a restore
brings back: runc tells CRIU to leave network devices alone. So the shim makes it and holds it, and
the runtime is told to join.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
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
