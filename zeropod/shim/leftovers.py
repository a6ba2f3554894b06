"""What shims, zygotes and CRIUs have left that were killed and that nobody will ask about again.

containerd executes `delete` for a shim that has died, which takes all of it away; but containerd
may have died, too, and have lost its state. So each zygote has a child look, once:

    /run/zeropod/s/<name>.sock   a shim's own service; refuses connections when the shim is dead:
                                 it goes, and with it the shim's socket of that name
    /run/zeropod/z/<other>       the directory of another installation's zygote, likewise
    /tmp/.criu.mntns.*           while no CRIU lives

Whoever listens, however slowly, is alive, and nothing of his is touched. Images are swept by who
makes new ones (checkpoint/image.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Final

from zeropod.checkpoint import debris
from zeropod.shim import bootstrap, process
from zeropod.task import status

_ZYGOTES: Final = Path("/run/zeropod/z")
_TITLE: Final = "zeropod-leftovers"


def sweep_aside(title: str) -> None:
    """Have a child sweep, which has no descriptor of this process. ``title``: of this process."""
    process.set_title(os.getpid(), _TITLE)
    try:
        if os.fork() == 0:
            try:
                os.closerange(3, 1024)
                sweep()
            finally:
                os._exit(0)
    except OSError as error:
        print(f"leftovers: fork: {error.strerror}", file=sys.stderr)
    process.set_title(os.getpid(), title)


def sweep() -> None:
    """Remove what belongs to nobody. Every kind is tried, whatever the one before it said."""
    for kind in (_shims, _zygotes, _mount_trees):
        try:
            kind()
        except OSError as error:
            print(f"{kind.__name__}: {error}", file=sys.stderr)


def _shims() -> None:
    for path in _entries(status.SOCKET_ROOT):
        if path.suffix == ".sock" and not bootstrap.served(path):
            bootstrap.remove_dead(bootstrap.SOCKET_ROOT / path.stem)
            bootstrap.remove_dead(path)


def _zygotes() -> None:
    for folder in _entries(_ZYGOTES):
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else a launcher starts one
            if not any(_answers(path) for path in folder.glob("*.s")):
                shutil.rmtree(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _mount_trees() -> None:
    for path in debris.abandoned_mount_trees():
        with contextlib.suppress(OSError):  # it is not empty: not what CRIU leaves
            path.rmdir()


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _answers(path: Path) -> bool:
    """Whether somebody listens on a zygote's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:  # a full queue
            return True
        return True
