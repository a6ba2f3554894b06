"""The process that shims are forked from: everything imported, nothing running.

One thread, no event loop, no connection of its own: it accepts, checks that the peer is root,
forks and forgets. The child alone talks to the launcher, so that killing the zygote at any moment
harms no start. It ends with the containerd that it was started for, or when its socket is taken
away because another build has come. What keeps its memory shared is in `sharing.py`.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from zeropod.oci import syscalls
from zeropod.shim import caller, leftovers, process
from zeropod.shim.main import Serve, run
from zeropod.shim.sharing import share

_TITLE: Final = "zeropod-zygote"


def serve_forks(listening: socket.socket, parent_pidfd: int, path: Path, serve: Serve) -> None:
    """Fork a child per connection until the parent ends or the socket at ``path`` is not ours."""
    own = path.stat().st_ino
    watch = syscalls.inotify(str(path.parent), syscalls.IN_DELETE | syscalls.IN_MOVED)
    try:
        poll = select.poll()
        for descriptor in (listening.fileno(), parent_pidfd, watch):
            poll.register(descriptor, select.POLLIN)
        share()
        leftovers.sweep_aside(_TITLE, path.parent)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if listening.fileno() in ready and _fork(listening, serve):
                return
            if parent_pidfd in ready:
                return
            if watch in ready:
                os.read(watch, 65536)
                if not path.exists() or path.stat().st_ino != own:
                    return
    finally:
        os.close(watch)


def _fork(listening: socket.socket, serve: Serve) -> bool:
    """Serve the next connection in a child. True in the child, when it is done."""
    connection, _ = listening.accept()
    with connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        if uid != os.geteuid():
            print(f"refused a connection by uid {uid}", file=sys.stderr)
            return False
        try:
            pid = os.fork()
        except OSError as error:
            print(f"fork: {error.strerror}", file=sys.stderr)
            return False
        if pid == 0:
            _in_child(connection, serve)
    return False


def _in_child(connection: socket.socket, serve: Serve) -> None:
    code = 1
    try:
        keep = connection.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, 1024)
        gc.enable()
        code = run(connection, serve)
    finally:
        os._exit(code)


def main(path: Path, serve: Serve) -> None:
    """Serve on descriptor 3, which listens at ``path``, while the process of pidfd 4 lives."""
    gc.disable()
    with socket.socket(fileno=3) as listening:
        process.follow_oom_score(os.getpid(), os.getpid())
        process.set_title(os.getpid(), _TITLE)
        caller.ask(caller.pid_of(4))
        serve_forks(listening, 4, path, serve)
