"""The task service, v2 and v3: each method checks its request and makes one call of a container.

containerd.task.v3 differs from v2 by its name only, so one table of handlers serves both. What this
version lacks answers Unimplemented, as does every method that the table does not have.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from zeropod.api import task_pb2 as pb
from zeropod.api import task_types_pb2 as types
from zeropod.api.runc_options_pb2 import ProcessDetails
from zeropod.container.container import Container, CreateRequest
from zeropod.container.events import Deleted, Stdio
from zeropod.container.pod import Pod
from zeropod.container.process import ProcessInfo, Status
from zeropod.errors import InvalidArgument, NotFound
from zeropod.oci.joined import Host
from zeropod.oci.mounts import Mount
from zeropod.task import metrics, options
from zeropod.task.deletes import Deletes
from zeropod.task.events import timestamp
from zeropod.task.registry import Registry
from zeropod.ttrpc import Method
from zeropod.version import VERSION

log = logging.getLogger(__name__)

SERVICES: Final = ("containerd.task.v2.Task", "containerd.task.v3.Task")

_STATUS: Final = {
    Status.CREATED: types.CREATED,
    Status.RUNNING: types.RUNNING,
    Status.PAUSED: types.PAUSED,
    Status.STOPPED: types.STOPPED,
}
_LINGER_S: Final = 10.0
_MAX_SIGNAL: Final = 64
_MAX_SIDE: Final = 2**16 - 1  # of a terminal, in characters
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""Wider than what containerd accepts; ids become names of files and words of command lines."""

Create = Callable[[CreateRequest, Pod], Awaitable[Container]]


class TaskService:
    """Serves the containers in ``registry``.

    Args:
        shutdown: called when containerd asks for the end and no container is left.
        host: notes the containers for a `delete` after the shim's death.
    """

    def __init__(
        self,
        pod: Pod,
        registry: Registry,
        shutdown: Callable[[], None],
        *,
        host: Host | None = None,
        create: Create = Container.create,
    ) -> None:
        self._pod = pod
        self._registry = registry
        self._shutdown = shutdown
        self._host = host
        self._make = create
        self._deletes = Deletes()
        self._last_bundle: Path | None = None
        self._lingering: asyncio.TimerHandle | None = None

    def handlers(self) -> Mapping[str, Mapping[str, Method]]:
        """For `ttrpc.Server`."""
        methods = {
            "State": Method(pb.StateRequest, self._state),
            "Create": Method(pb.CreateTaskRequest, self._create),
            "Start": Method(pb.StartRequest, self._start),
            "Delete": Method(pb.DeleteRequest, self._delete, untold=self._deletes.untold),
            "Pids": Method(pb.PidsRequest, self._pids),
            "Pause": Method(pb.PauseRequest, self._pause),
            "Resume": Method(pb.ResumeRequest, self._resume),
            "Checkpoint": Method(pb.CheckpointTaskRequest, self._checkpoint),
            "Update": Method(pb.UpdateTaskRequest, self._update),
            "Kill": Method(pb.KillRequest, self._kill),
            "Exec": Method(pb.ExecProcessRequest, self._exec),
            "ResizePty": Method(pb.ResizePtyRequest, self._resize),
            "CloseIO": Method(pb.CloseIORequest, self._close_io),
            "Wait": Method(pb.WaitRequest, self._wait, waits=True),
            "Stats": Method(pb.StatsRequest, self._stats),
            "Connect": Method(pb.ConnectRequest, self._connect),
            "Shutdown": Method(pb.ShutdownRequest, self._end),
        }
        return dict.fromkeys(SERVICES, methods)

    async def _create(self, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        _check_id("create", request.id)
        if not request.bundle.startswith("/"):
            raise InvalidArgument(f"create: bundle {request.bundle!r}: expected an absolute path")
        for name in ("checkpoint", "parent_checkpoint"):
            path = getattr(request, name)
            if path and not path.startswith("/"):
                raise InvalidArgument(f"create: {name} {path!r}: expected an absolute path")
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        wanted = CreateRequest(
            id=request.id,
            bundle=request.bundle,
            stdio=stdio,
            options=options.decode(request.options),
            rootfs=tuple(
                Mount(mount.type, mount.source, tuple(mount.options), mount.target)
                for mount in request.rootfs
            ),
            checkpoint=request.checkpoint,
            parent_checkpoint=request.parent_checkpoint,
        )
        self._registry.reserve(request.id)
        self._deletes.forget(request.id)
        try:
            if self._host is not None:
                self._host.note(Path(request.bundle), wanted.options)
            container = await self._make(wanted, self._pod)
        except BaseException:
            self._forget(request.id, Path(request.bundle))
            raise
        self._registry.add(container)
        return pb.CreateTaskResponse(pid=container.state().pid)

    async def _start(self, request: pb.StartRequest) -> pb.StartResponse:
        pid = await self._registry.get(request.id).start(request.exec_id)
        return pb.StartResponse(pid=pid)

    async def _delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        if request.exec_id:
            container = self._registry.get(request.id)
            return _gone(await container.delete(request.exec_id))
        return await self._deletes.once(request.id, self._delete_container)

    async def _delete_container(self, id: str) -> pb.DeleteResponse:
        container = self._registry.get(id)
        gone = await container.delete()
        self._forget(id, container.bundle.path)
        self._last_bundle = container.bundle.path
        self._linger()
        return _gone(gone)

    def _forget(self, id: str, bundle: Path) -> None:
        self._registry.remove(id)
        if self._host is not None:
            self._host.forget(bundle)

    def _linger(self) -> None:
        """A container is deleted, or the end was asked for while there are others.

        In a moment nobody may know of them: a containerd that was killed and started again removes
        the bundle of a container without a Delete, and its Shutdown may have come too early.
        """
        if self._lingering is None:
            loop = asyncio.get_running_loop()
            self._lingering = loop.call_later(_LINGER_S, self._end_if_forgotten)

    def _end_if_forgotten(self) -> None:
        self._lingering = None
        ended = [found for found in self._registry if found.state().status is Status.STOPPED]
        if len(ended) < len(self._registry):
            return
        bundles = [self._last_bundle, *(found.bundle.path for found in ended)]
        if any(bundle is not None and bundle.exists() for bundle in bundles):
            self._linger()
            return
        log.warning("nobody has asked for the end of this shim, and its bundles are gone: ends")
        self._shutdown()

    async def _exec(self, request: pb.ExecProcessRequest) -> Empty:
        _check_id("exec", request.exec_id)
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        container = self._registry.get(request.id)
        await container.add_exec(request.exec_id, request.spec.value, stdio)
        return Empty()

    async def _pause(self, request: pb.PauseRequest) -> Empty:
        await self._registry.get(request.id).pause()
        return Empty()

    async def _resume(self, request: pb.ResumeRequest) -> Empty:
        await self._registry.get(request.id).resume()
        return Empty()

    async def _update(self, request: pb.UpdateTaskRequest) -> Empty:
        container = self._registry.get(request.id)
        try:
            resources = json.loads(request.resources.value or b"{}")
        except ValueError as error:
            raise InvalidArgument(f"update: the resources are not JSON: {error}") from error
        if not isinstance(resources, dict):
            raise InvalidArgument("update: the resources are no object")
        await container.update(resources)
        return Empty()

    async def _checkpoint(self, request: pb.CheckpointTaskRequest) -> Empty:
        container = self._registry.get(request.id)
        if not request.path.startswith("/"):
            raise InvalidArgument(f"checkpoint: path {request.path!r}: expected an absolute path")
        flags, work_path = options.checkpoint(request.options)
        await container.checkpoint(request.path, flags, work_path)
        return Empty()

    async def _kill(self, request: pb.KillRequest) -> Empty:
        if not 0 <= request.signal <= _MAX_SIGNAL:
            raise InvalidArgument(f"kill: {request.signal} is not a signal")
        container = self._registry.get(request.id)
        await container.kill(request.signal, exec_id=request.exec_id, all=request.all)
        return Empty()

    async def _state(self, request: pb.StateRequest) -> pb.StateResponse:
        now = self._registry.get(request.id).state(request.exec_id)
        response = pb.StateResponse(
            id=now.id,
            bundle=now.bundle,
            pid=now.pid,
            status=_STATUS[now.status],
            stdin=now.stdio.stdin,
            stdout=now.stdio.stdout,
            stderr=now.stdio.stderr,
            terminal=now.stdio.terminal,
            exec_id=now.exec_id,
        )
        if now.exit is not None:
            response.exit_status = now.exit.status
            response.exited_at.CopyFrom(timestamp(now.exit.at_ns))
        return response

    async def _wait(self, request: pb.WaitRequest) -> pb.WaitResponse:
        exit = await self._registry.get(request.id).wait(request.exec_id)
        return pb.WaitResponse(exit_status=exit.status, exited_at=timestamp(exit.at_ns))

    async def _pids(self, request: pb.PidsRequest) -> pb.PidsResponse:
        found = await self._registry.get(request.id).pids()
        return pb.PidsResponse(processes=[_process(info) for info in found])

    async def _stats(self, request: pb.StatsRequest) -> pb.StatsResponse:
        usage = await self._registry.get(request.id).stats()
        return pb.StatsResponse(stats=metrics.encode(usage))

    async def _resize(self, request: pb.ResizePtyRequest) -> Empty:
        if max(request.width, request.height) > _MAX_SIDE:
            raise InvalidArgument(f"resize: {request.width}x{request.height} is too large")
        container = self._registry.get(request.id)
        await container.resize(request.width, request.height, request.exec_id)
        return Empty()

    async def _close_io(self, request: pb.CloseIORequest) -> Empty:
        if request.stdin:
            await self._registry.get(request.id).close_io(request.exec_id)
        return Empty()

    async def _connect(self, request: pb.ConnectRequest) -> pb.ConnectResponse:
        try:
            task_pid = self._registry.get(request.id).state().pid
        except NotFound:
            task_pid = 0
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=task_pid, version=VERSION)

    async def _end(self, request: pb.ShutdownRequest) -> Empty:
        """As the stock shim: with containers left it is a request that changes nothing."""
        if len(self._registry) == 0:
            self._shutdown()
        else:
            self._linger()
        return Empty()


def _gone(event: Deleted) -> pb.DeleteResponse:
    exit = event.exit
    return pb.DeleteResponse(
        pid=event.pid, exit_status=exit.status, exited_at=timestamp(exit.at_ns)
    )


def _check_id(verb: str, id: str) -> None:
    if not _ID.fullmatch(id):
        raise InvalidArgument(f"{verb}: {id!r} is not a valid id")


def _process(info: ProcessInfo) -> types.ProcessInfo:
    message = types.ProcessInfo(pid=info.pid)
    if info.exec_id:
        details = ProcessDetails(exec_id=info.exec_id)
        name, value = details.DESCRIPTOR.full_name, details.SerializeToString()
        message.info.CopyFrom(Any(type_url=name, value=value))
    return message
