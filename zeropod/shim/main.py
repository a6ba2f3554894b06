"""One invocation from arrival to end: `start`, which becomes a shim or finds one, or `delete`.

Runs in a process of its own, forked from the zygote or started by the launcher, which knows no
difference. That process is the future shim, and every page that it touches is private memory for
as long as the pod lives, because Python counts references in the objects themselves. So it lets a
child of its own do what is needed once (read the request, find the group, bind the socket, enter
the cgroup: 2 MB of touched pages) and takes only the result, some strings and two descriptors.
`delete`, and a start that finds a shim, are answered by the child; there is nothing to become then.

The child dies with the shim, and the shim ends when the child does without a result: the launcher
sees the end of both, and of nothing less, as the end of file on its connection.
"""

from __future__ import annotations

import array
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from zeropod.errors import Unavailable, ZeropodError
from zeropod.oci import joined
from zeropod.shim import bootstrap, caller, delete, log, process
from zeropod.shim.invocation import Channel, Invocation

NAME: Final = "containerd-shim-zeropod-v2"
_STRINGS: Final = 8
_END: Final = b"\0end"


@dataclass(frozen=True, slots=True)
class Shim:
    """What a shim knows of itself before it serves its first request.

    ``open_files``: RLIMIT_NOFILE's soft limit of what it starts; its own is higher.
    """

    id: str
    namespace: str
    group: str
    ttrpc_address: str
    socket: bootstrap.ShimSocket
    open_files: int


Serve: TypeAlias = Callable[[Shim, Callable[[], None]], None]
"""Serves until there is nothing left to do; calls its second argument once it can be connected."""


def run(connection: socket.socket, serve: Serve) -> int:
    """Do what the launcher at the other end wants. Returns the exit code of this process."""
    result, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    owner = os.getpid()
    if os.fork() == 0:
        code = 1
        try:
            result.close()
            process.die_with(owner)
            code = _prepare(Channel(connection), owner, childs)
            connection.close()
            childs.close()  # the shim goes on; tearing our memory down takes a millisecond
        finally:
            os._exit(code)
    childs.close()
    data, descriptors = _receive(result)
    result.close()
    if not descriptors:
        return 0  # all is said
    if not data.endswith(_END):
        return 1  # killed in the middle of a sentence
    return _become_shim(Channel(connection), data, descriptors, serve)


def _become_shim(channel: Channel, data: bytes, descriptors: list[int], serve: Serve) -> int:
    listening, fifo = descriptors
    strings = os.fsdecode(data.removesuffix(_END)).split("\0")
    id, namespace, group, ttrpc_address, path, answer, debug, open_files = strings[:_STRINGS]
    process.become_leader()
    log.set_up(fifo, debug=bool(debug), id=id, namespace=namespace)
    os.close(fifo)
    for entry in strings[_STRINGS:]:
        key, _, value = entry.partition("=")
        os.environ[key] = value
    claimed = bootstrap.ShimSocket(path, socket.socket(fileno=listening))
    shim = Shim(id, namespace, group, ttrpc_address, claimed, int(open_files))
    try:
        serve(shim, lambda: channel.answer(os.fsencode(answer)))
    except Exception as error:
        text = _text(error)
        logging.exception("%s", text)
        claimed.close()
        _refuse(channel, text)
        return 1
    finally:
        claimed.close()
        channel.close()
    return 0


def _prepare(channel: Channel, owner: int, result: socket.socket) -> int:
    """The part of the child. Returns its exit code."""
    try:
        invocation = channel.receive(owner)
        process.join_cgroup_of(invocation.launcher_pid, owner)
        if invocation.action == "delete":
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(invocation.environ)
            channel.answer(delete.delete(invocation))
        else:
            _start(invocation, channel, owner, result)
    except Unavailable as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not process.is_ending(owner):  # else that is what failed: the launcher does without us
            _refuse(channel, _text(error))
        return 1
    return 0


def _start(invocation: Invocation, channel: Channel, owner: int, result: socket.socket) -> None:
    group = bootstrap.group(invocation.bundle, invocation.id)
    path = bootstrap.socket_path(invocation.address, invocation.namespace, group)
    params = bootstrap.params(invocation)
    answer = bootstrap.answer(
        path,
        invocation.environ,
        modern=params is not None,
        joins=caller.joins_itself(invocation.containerd_pid),
    )
    cgroup = bootstrap.shim_cgroup(invocation, params)
    ttrpc_address = params.containerd_ttrpc_address if params else ""
    ttrpc_address = ttrpc_address or invocation.ttrpc_address
    debug = invocation.debug or (params is not None and params.log_level <= bootstrap.DEBUG)
    claimed = bootstrap.claim(path)
    try:
        joined.write_address(Path(invocation.bundle), path)
        if claimed is None:
            channel.answer(answer)
            return
        process.follow_oom_score(invocation.containerd_pid, owner)
        if cgroup:
            process.join_cgroup(cgroup, owner)
        open_files = process.raise_file_limit(invocation.launcher_pid, owner)
        process.set_title(
            owner,
            NAME,
            *("-namespace", invocation.namespace, "-id", invocation.id),
            *("-address", invocation.address),
        )
        environ = {**invocation.environ, delete.SHIM_ENV: path.name}
        strings = (
            *(invocation.id, invocation.namespace, group, ttrpc_address, str(path)),
            *(os.fsdecode(answer), "debug" if debug else "", str(open_files)),
            *(f"{key}={value}" for key, value in environ.items()),
        )
        fifo = log.open_fifo(f"{invocation.bundle}/log")
        _send(result, os.fsencode("\0".join(strings)) + _END, [claimed.listening.fileno(), fifo])
    except BaseException:
        if claimed is not None:
            claimed.close()
        raise


def _send(result: socket.socket, data: bytes, descriptors: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    sent = result.sendmsg([data], rights)
    result.sendall(data[sent:])


def _receive(result: socket.socket) -> tuple[bytes, list[int]]:
    """All that the child sends until it ends."""
    flags = socket.MSG_CMSG_CLOEXEC  # a runtime with our socket would look like a living shim
    data, control, _, _ = result.recvmsg(65536, socket.CMSG_SPACE(8), flags)
    descriptors = array.array("i")
    for _, _, rights in control:
        descriptors.frombytes(rights)
    while more := result.recv(65536):
        data += more
    return data, list(descriptors)


def _refuse(channel: Channel, text: str) -> None:
    try:
        channel.answer(f"{NAME}: {text}\n".encode(), code=1)
    except Unavailable as error:
        print(f"{NAME}: {error}", file=sys.stderr)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ZeropodError) else f"{type(error).__name__}: {error}"
