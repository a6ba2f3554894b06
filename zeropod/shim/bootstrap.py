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
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from zeropod.api import runc_options_pb2, runtimeoptions_pb2
from zeropod.config import CRI_SANDBOX_ID, RUNC_GROUP
from zeropod.errors import InvalidArgument
from zeropod.shim.invocation import Invocation

SOCKET_ROOT: Final = Path("/run/containerd/s")
_CONFIG_MAX: Final = 16 << 20
_BACKLOG: Final = 128
_ALIVE_TIMEOUT_S: Final = 0.1


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
        with _alone(path.parent), contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == self._inode:
                path.unlink()

    def close(self) -> None:
        self.withdraw()
        self.listening.close()


def claim(path: Path) -> ShimSocket | None:
    """A listening socket there, root only; None if a living shim has it already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(path.parent):
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
    with _alone(path.parent):
        if not served(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def served(path: Path) -> bool:
    """Whether a living shim listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ALIVE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (TimeoutError, BlockingIOError):  # a full queue: somebody is there
            return True
        return True


def answer(path: Path, environ: Mapping[str, str]) -> bytes:
    """What `start` prints.

    The plain address, which every containerd takes for version 2 of the task service; as JSON with
    version 3 where MAX_SHIM_VERSION says that this is understood. containerd 1.7 and 2.x set it to
    2, and 1.7 refuses 3.
    """
    address = f"unix://{path}"
    known = environ.get("MAX_SHIM_VERSION", "")
    if known.isdecimal() and int(known) >= 3:
        return json.dumps({"version": 3, "address": address, "protocol": "ttrpc"}).encode()
    return address.encode()


def write_address(bundle: str, path: Path) -> None:
    """Note the address in the bundle, where `delete` finds it after the shim's death."""
    (Path(bundle) / "address").write_text(f"unix://{path}")


def read_address(bundle: str) -> Path | None:
    """The socket noted in a bundle."""
    try:
        address = (Path(bundle) / "address").read_text()
    except OSError:
        return None
    return Path(address.removeprefix("unix://")) if address.startswith("unix:///") else None


def shim_cgroup(invocation: Invocation) -> str:
    """The runtime option ShimCgroup, from the options on stdin; "" without it.

    What is on stdin is an Any with the runtime's options, or from containerd 2.3 on bootstrap
    parameters, which are not read here: Create brings the options again.

    Raises:
        InvalidArgument: options of a known type that cannot be read.
    """
    options = Any()
    try:
        options.ParseFromString(invocation.stdin)
        if options.type_url.endswith("containerd.runc.v1.Options"):
            return runc_options_pb2.Options.FromString(options.value).shim_cgroup
        if options.type_url.endswith("runtimeoptions.v1.Options"):
            body = runtimeoptions_pb2.Options.FromString(options.value).config_body
            return str(tomllib.loads(body.decode()).get("ShimCgroup", ""))
    except (DecodeError, ValueError) as error:
        if "Options" in options.type_url:
            raise InvalidArgument(f"the runtime options cannot be read: {error}") from error
    return ""
