"""One invocation from arrival to end: `start`, which becomes a shim or finds one, or `delete`.

Runs in a process of its own, forked from the zygote or started by the launcher, which knows no
difference. Everything that is served lies in the callable `Serve` (assemble.py), so that this
module can be tried without containers.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from zeropod.errors import Unavailable, ZeropodError
from zeropod.shim import bootstrap, delete, log, process
from zeropod.shim.invocation import Channel, Invocation

NAME: Final = "containerd-shim-zeropod-v2"
SHIM_ENV: Final = delete.SHIM_ENV
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shim:
    """What a shim knows of itself before it serves its first request."""

    invocation: Invocation
    group: str
    socket: bootstrap.ShimSocket


Serve: TypeAlias = Callable[[Shim, Callable[[], None]], None]
"""Serves until there is nothing left to do; calls its second argument once it can be connected."""


def run(connection: socket.socket, serve: Serve) -> int:
    """Do what the launcher at the other end wants. Returns the exit code of this process."""
    channel = Channel(connection)
    try:
        invocation = channel.receive()
        process.become_own(invocation.environ)
        process.join_cgroup_of(invocation.launcher_pid)
        if invocation.action == "delete":
            channel.answer(delete.delete(invocation))
        else:
            _start(invocation, channel, serve)
    except Unavailable as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        text = str(error) if isinstance(error, ZeropodError) else f"{type(error).__name__}: {error}"
        if logging.root.handlers:  # the shim's own log; before that the answer has to say it all
            _log.exception("%s", text)
        channel.answer(f"{NAME}: {text}\n".encode(), code=1)
        return 1
    finally:
        channel.close()
    return 0


def _start(invocation: Invocation, channel: Channel, serve: Serve) -> None:
    group = bootstrap.group(invocation.bundle, invocation.id)
    path = bootstrap.socket_path(invocation.address, invocation.namespace, group)
    answer = bootstrap.answer(path, invocation.environ)
    claimed = bootstrap.claim(path)
    bootstrap.write_address(invocation.bundle, path)
    if claimed is None:
        channel.answer(answer)
        return
    try:
        _become_shim(invocation, path)
        serve(Shim(invocation, group, claimed), lambda: channel.answer(answer))
    finally:
        claimed.close()


def _become_shim(invocation: Invocation, path: Path) -> None:
    fifo = log.open_fifo(f"{invocation.bundle}/log")
    log.set_up(fifo, debug=invocation.debug, id=invocation.id, namespace=invocation.namespace)
    process.dump_stacks_on_signal(fifo)
    if invocation.containerd_pid > 0:
        process.follow_oom_score(invocation.containerd_pid)
    if cgroup := bootstrap.shim_cgroup(invocation):
        process.join_cgroup(cgroup)
    process.become_subreaper()
    process.raise_file_limit()
    os.environ[SHIM_ENV] = path.name
    process.set_title(
        NAME,
        *("-namespace", invocation.namespace, "-id", invocation.id),
        *("-address", invocation.address),
    )
