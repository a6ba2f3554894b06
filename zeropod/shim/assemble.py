"""The wiring of a shim: its layers put together on an event loop, served, and taken apart.

The order of the end matters: first the sockets' names, so that a later start makes its own shim,
then the answers under way, the containers' descriptors and timers, the events that wait, and last
what all of them share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import uvloop

from zeropod._fastpath._command import set_open_files
from zeropod.config import NodeSettings
from zeropod.container.pod import Pod
from zeropod.container.scaling import make_scaler
from zeropod.oci.joined import Host
from zeropod.shim.bootstrap import ShimSocket, claim
from zeropod.shim.main import Shim
from zeropod.task.events import Publisher
from zeropod.task.inspect import InspectService
from zeropod.task.registry import Registry
from zeropod.task.service import TaskService
from zeropod.task.status import StatusService, socket_path
from zeropod.ttrpc import Server
from zeropod.version import VERSION

log = logging.getLogger(__name__)


def serve(shim: Shim, ready: Callable[[], None]) -> None:
    """Serve until containerd asks for the end or a signal does."""
    set_open_files(shim.open_files)
    os.environ["UV_USE_IO_URING"] = "0"  # rings and a kernel thread that nothing here needs
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve(shim, ready))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _serve(shim: Shim, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    registry = Registry()
    publisher = Publisher(shim.ttrpc_address, shim.namespace)
    pod = Pod(
        loop,
        namespace=shim.namespace,
        node=NodeSettings.load(),
        emit=publisher.publish,
        make_scaler=make_scaler,
    )
    host = Host(shim.id, shim.socket.path)
    server = Server(TaskService(pod, registry, stop.set, host=host).handlers())
    await server.serve(shim.socket.listening)
    inspect = InspectService(registry, shim.namespace)
    services = {**StatusService(registry, pod.feed).handlers(), **inspect.handlers()}
    status = Server(services)
    status_socket = _claim_status(Path(shim.socket.path))
    if status_socket is not None:
        await status.serve(status_socket.listening)
    ready()
    log.debug("shim %s serves group %s", VERSION, shim.group)
    try:
        await stop.wait()
    finally:
        shim.socket.withdraw()
        if status_socket is not None:
            status_socket.withdraw()
        await server.close()
        await status.close()
        for container in registry:
            await container.close()
        await publisher.close()
        await pod.close()


def _claim_status(shim: Path) -> ShimSocket | None:
    """The socket for the node's manager; None, with the reason in the log, where it cannot be."""
    path = socket_path(shim)
    try:
        if (claimed := claim(path)) is None:
            log.error("status: another process serves %s", path)
    except OSError as error:
        log.error("status: %s: %s: the manager will not see this pod", path, error.strerror)
        return None
    return claimed
