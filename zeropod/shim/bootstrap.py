"""`start`: which shim serves a container, where it listens, and what containerd is told.

Containers of one group (a pod) share a shim. Its socket is named by the group as containerd's own
shims name theirs, and whoever binds it is the shim: later starts of the group find it there. A
flock on the directory makes looking, clearing away a dead shim's socket and binding one step.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from zeropod.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from zeropod.api.ttrpc_pb2 import Request
from zeropod.config import CRI_SANDBOX_ID, RUNC_GROUP
from zeropod.errors import InvalidArgument
from zeropod.shim.invocation import Invocation
from zeropod.task import options
from zeropod.ttrpc.frame import Flag, Frame, FrameType

SOCKET_ROOT: Final = Path("/run/containerd/s")
DEBUG: Final = -4  # of the bootstrap parameters' log levels; more verbose ones are below
_CONFIG_MAX: Final = 16 << 20
_BACKLOG: Final = 128
_ALIVE_TIMEOUT_S: Final = 0.1
_AGAIN_S: Final = 0.002
_QUESTION: Final = Frame(
    1, FrameType.REQUEST, Flag.REMOTE_CLOSED, Request(method="Served").SerializeToString()
).encode()
"""Which no service knows, and every shim answers so."""


def group(bundle: str, id: str) -> str:
    """The group of a container: its annotation, else its pod's sandbox, else itself.

    Raises:
        InvalidArgument: the bundle has no readable config.json.
    """
    path = Path(bundle) / "config.json"
    try:
        with path.open("rb") as file:
            annotations = json.loads(file.read(_CONFIG_MAX)).get("annotations") or {}
        return str(annotations.get(RUNC_GROUP) or annotations.get(CRI_SANDBOX_ID) or id)
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error


def socket_path(address: str, namespace: str, group: str, root: Path = SOCKET_ROOT) -> Path:
    """Where the shim of a group listens; ``address`` is that of containerd itself."""
    name = posixpath.normpath(f"{address}/{namespace}/{group}")
    return root / hashlib.sha256(name.encode()).hexdigest()


class ShimSocket:
    """The listening socket of this shim, and its name in the file system. Owns both."""

    __slots__ = ("_inode", "listening", "path")

    def __init__(self, path: str, listening: socket.socket) -> None:
        self.path = path
        self.listening = listening
        self._inode = os.lstat(path).st_ino

    def withdraw(self) -> None:
        """Take the name away, so that a later start makes a shim of its own. Idempotent."""
        path = Path(self.path)
        with alone(path.parent), contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == self._inode:
                path.unlink()

    def close(self) -> None:
        self.withdraw()
        self.listening.close()


def claim(path: Path) -> ShimSocket | None:
    """A listening socket there, root only; None if a living shim has it already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone(path.parent):
        if served(path):
            return None
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        finally:
            os.umask(before)
        return ShimSocket(str(path), listening)


def remove_dead(path: Path) -> None:
    """Remove the name of a shim that is no more."""
    if not path.parent.is_dir():
        return
    with alone(path.parent):
        if not served(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a directory."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def served(path: Path, within_s: float = _ALIVE_TIMEOUT_S) -> bool:
    """Whether a living shim listens there.

    It must answer: a killed one has its connections closed before its listening socket, which the
    kernel may be busy for long between the two. Who says nothing ``within_s`` is slow, or stopped.
    """
    deadline = time.monotonic() + within_s
    while (left := deadline - time.monotonic()) > 0:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(left)
            try:
                probe.connect(str(path))
                probe.sendall(_QUESTION)
                if probe.recv(1):
                    return True
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except (TimeoutError, BlockingIOError):  # a full queue: somebody is there
                return True
            except ConnectionError:
                pass
        time.sleep(_AGAIN_S)  # it was just closing, or has too many connections
    return True


def params(invocation: Invocation) -> BootstrapParams | None:
    """What containerd 2.3 and newer send on stdin; None from one that sends options, or nothing.

    An Any with options may be read as parameters, too. So what counts is that they speak of the
    container that the command line names.
    """
    try:
        found = BootstrapParams.FromString(invocation.stdin)
    except DecodeError:
        return None
    named = (found.instance_id, found.namespace)
    return found if named == (invocation.id, invocation.namespace) else None


def answer(
    path: Path, environ: Mapping[str, str], *, modern: bool = False, joins: bool = False
) -> bytes:
    """What `start` prints, in the caller's form. Every shim serves versions 2 and 3 of the service.

    ``modern``: to one that has sent bootstrap parameters, their result. Else as JSON with version 3
    where this is understood: MAX_SHIM_VERSION says so, or ``joins`` (see caller.py). Else the plain
    address, which every containerd takes for version 2.
    """
    address = f"unix://{path}"
    if modern:
        return BootstrapResult(version=3, address=address, protocol="ttrpc").SerializeToString()
    known = environ.get("MAX_SHIM_VERSION", "")
    if joins or (known.isdecimal() and int(known) >= 3):
        return json.dumps({"version": 3, "address": address, "protocol": "ttrpc"}).encode()
    return address.encode()


def shim_cgroup(invocation: Invocation, given: BootstrapParams | None) -> str:
    """The runtime option ShimCgroup; "" without it.

    The options are an Any: on stdin, or an extension of the bootstrap parameters.

    Raises:
        InvalidArgument: as `options.decode`.
    """
    found = [_any(invocation.stdin)] if given is None else [e.value for e in given.extensions]
    known = (sent for sent in found if options.is_known(sent))
    return next((options.decode(sent).shim_cgroup for sent in known), "")


def _any(data: bytes) -> Any:
    try:
        return Any.FromString(data)
    except DecodeError:
        return Any()
