"""What containerd asks of the shim's program, as the launcher hands it over.

The launcher (csrc/launcher.c) and the child that serves it speak four messages over a connection
that nobody else holds; the child works only after the launcher's "go", so that a launcher that has
given up is never served. `Channel` is the child's end, `Invocation` what it learns.
"""

from __future__ import annotations

import array
import os
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeropod.errors import InvalidArgument, Unavailable
from zeropod.version import BUILD_ID

_FLAGS: Final = frozenset({"debug"})
_VALUES: Final = frozenset({"namespace", "id", "address", "publish-binary", "bundle", "socket"})
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_IDENTIFIER_MAX: Final = 76  # containerd's own bound, and with it a safe part of a path
_REQUEST_MAX: Final = 4 << 20
_STDIN_MAX: Final = 10 << 20
_GO_TIMEOUT_S: Final = 30.0
_ANSWER_MAX: Final = (64 << 10) - 1
_DESCRIPTORS: Final = 3


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of the launcher.

    ``bundle`` is absolute; ``stdin`` the serialized options or bootstrap parameters, if any;
    ``launcher_pid`` lives until it is answered, ``containerd_pid`` is its parent.
    """

    action: str
    namespace: str
    id: str
    address: str
    bundle: str
    debug: bool
    environ: Mapping[str, str]
    stdin: bytes = b""
    launcher_pid: int = 0
    containerd_pid: int = 0

    @property
    def ttrpc_address(self) -> str:
        """Where containerd takes events."""
        return self.environ.get("TTRPC_ADDRESS") or f"{self.address}.ttrpc"


def parse(
    argv: list[str],
    environ: Mapping[str, str],
    cwd: str,
    *,
    stdin: bytes = b"",
    launcher_pid: int = 0,
    containerd_pid: int = 0,
) -> Invocation:
    """Read containerd's command line (Go's flag syntax), without the program's name.

    Raises:
        InvalidArgument: an unknown flag, a missing value, an identifier that is none.
    """
    values: dict[str, str] = {}
    debug = False
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        if name in _FLAGS:
            debug = value != "false"
        elif name in _VALUES:
            if not equals:
                if not rest:
                    raise InvalidArgument(f"flag -{name} needs a value")
                value = rest.pop(0)
            values[name] = value
        else:
            raise InvalidArgument(f"flag -{name} is not known")
    if len(rest) != 1 or rest[0] not in ("start", "delete"):
        raise InvalidArgument(f"expected start or delete, found {' '.join(rest) or 'nothing'}")
    return Invocation(
        action=rest[0],
        namespace=identifier("namespace", values.get("namespace", "")),
        id=identifier("id", values.get("id", "")),
        address=values.get("address", ""),
        bundle=values.get("bundle") or cwd,
        debug=debug,
        # containerd's own notify socket: a runtime that finds it wants to pass it on to init.
        environ={key: value for key, value in environ.items() if key != "NOTIFY_SOCKET"},
        stdin=stdin,
        launcher_pid=launcher_pid,
        containerd_pid=containerd_pid,
    )


def identifier(name: str, value: str) -> str:
    """Check one of containerd's identifiers before it becomes part of a path."""
    if not value:
        raise InvalidArgument(f"flag -{name} is missing")
    if len(value) > _IDENTIFIER_MAX or not _IDENTIFIER.fullmatch(value):
        raise InvalidArgument(f"{name} {value[:100]!r} is not a valid identifier")
    return value


class Channel:
    """The connection to one launcher. Owns it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self, owner: int) -> Invocation:
        """Take the request, claim it for ``owner`` and wait for the launcher's word.

        ``owner``: the process with whose death all work on the request ends.
        Changes the working directory to the launcher's and back to /.

        Raises:
            Unavailable: the launcher is gone or wants another build of us: do nothing.
            InvalidArgument: the command line makes no sense.
        """
        self._connection.settimeout(_GO_TIMEOUT_S)
        room = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
        flags = socket.MSG_CMSG_CLOEXEC
        build, control, _, _ = self._connection.recvmsg(256, room, flags)
        descriptors = array.array("i")
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        try:
            if len(descriptors) != _DESCRIPTORS:
                raise Unavailable("the launcher is gone")
            if build.decode() != BUILD_ID:
                raise Unavailable(f"this is build {BUILD_ID}, the launcher is of {build.decode()}")
            who = struct.pack("3i", owner, os.geteuid(), os.getegid())
            claim = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)]
            self._connection.sendmsg([b"claim"], claim)
            if self._connection.recv(16) != b"go":
                raise Unavailable("the launcher is gone")
            return self._read(*descriptors)
        except OSError as error:
            raise Unavailable(f"the launcher is gone: {error.strerror}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _read(self, request: int, stdin: int, cwd: int) -> Invocation:
        form, parent, count, *strings = _contents(request, _REQUEST_MAX).split(b"\0")[:-1]
        argc = int(count)
        if form != b"1" or argc > len(strings):
            raise InvalidArgument("the launcher's request has an unknown form")
        entries = (entry.partition(b"=") for entry in strings[argc:])
        os.fchdir(cwd)
        bundle = str(Path.cwd())
        os.chdir("/")
        return parse(
            [os.fsdecode(text) for text in strings[:argc]],
            {os.fsdecode(key): os.fsdecode(value) for key, _, value in entries},
            bundle,
            stdin=_contents(stdin, _STDIN_MAX),
            launcher_pid=_peer_pid(self._connection),
            containerd_pid=int(parent),
        )

    def answer(self, data: bytes, *, code: int = 0) -> None:
        """Have ``data`` printed (to stderr if ``code`` is not 0) and end the conversation.

        Raises:
            Unavailable: nobody will ever read it.
        """
        try:
            self._connection.send(b"%d" % code + data[:_ANSWER_MAX])
        except OSError as error:
            raise Unavailable(f"the launcher is gone: {error.strerror}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._connection.close()


def _contents(descriptor: int, limit: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > limit:
        raise InvalidArgument(f"a request of {size} bytes is too long")
    return os.pread(descriptor, size, 0)


def _peer_pid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return array.array("i", credentials)[0]
