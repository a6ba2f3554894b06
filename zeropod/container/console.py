"""The terminal of a process: the runtime makes it and sends its master side over a unix socket.

The socket lies in the bundle and is named through a descriptor of ours, because the path of a
bundle is longer than a socket's address may be. The runtime has sent the terminal when it ends, so
nothing waits here.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import termios
from pathlib import Path

from zeropod.errors import RuntimeFailed


class ConsoleSocket:
    """Where a runtime sends a terminal to (its ``--console-socket``). Owns socket and name."""

    def __init__(self, bundle: Path, id: str) -> None:
        self._file = bundle / f"{id}.console"
        self._file.unlink(missing_ok=True)
        self._folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listening.bind(f"/proc/self/fd/{self._folder}/{self._file.name}")
            self._file.chmod(0o600)
            self._listening.listen(1)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """The socket's name for another process."""
        return f"/proc/{os.getpid()}/fd/{self._folder}/{self._file.name}"

    def take_master(self) -> int:
        """The master side of the terminal, non-blocking. The caller closes it.

        Raises:
            RuntimeFailed: the runtime has sent none.
        """
        received = array.array("i")
        try:
            connection, _ = self._listening.accept()
            with connection:
                connection.setblocking(False)
                room = socket.CMSG_SPACE(4 * received.itemsize)
                _, control, _, _ = connection.recvmsg(4096, room)
        except OSError as error:
            raise RuntimeFailed(f"the runtime sent no terminal: {error.strerror}") from error
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
        if len(received) != 1 or not os.isatty(received[0]):
            for fd in received:
                os.close(fd)
            raise RuntimeFailed("the runtime sent something that is no terminal")
        os.set_inheritable(received[0], False)
        os.set_blocking(received[0], False)
        return received[0]

    def close(self) -> None:
        """Idempotent."""
        self._listening.close()
        with contextlib.suppress(FileNotFoundError):
            self._file.unlink()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def resize(master: int, width: int, height: int) -> None:
    """Set a terminal's size, in characters; its processes get SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))
