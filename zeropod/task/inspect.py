"""`zeropod.inspect.v1.Inspect`: what the command `zeropod` asks a shim, on the status socket.

It stands beside the service that the manager uses, whose messages are another project's, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zeropod.api import inspect_pb2 as pb
from zeropod.config import CRI_CONTAINER_NAME, CRI_SANDBOX_NAME, CRI_SANDBOX_NAMESPACE
from zeropod.container import standing
from zeropod.container.container import Container
from zeropod.container.report import History
from zeropod.container.state import State
from zeropod.task.registry import Registry
from zeropod.ttrpc import Method

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Inspect"].full_name


class InspectService:
    """Of the containers in ``registry``, the sandbox excepted."""

    def __init__(self, registry: Registry, namespace: str) -> None:
        self._registry = registry
        self._namespace = namespace

    def handlers(self) -> Mapping[str, Mapping[str, Method]]:
        """For `ttrpc.Server`."""
        methods = {
            "List": Method(pb.ListRequest, self._list),
            "Get": Method(pb.ContainerRequest, self._get),
            "Wake": Method(pb.ContainerRequest, self._wake),
            "Sleep": Method(pb.SleepRequest, self._sleep),
        }
        return {SERVICE: methods}

    async def _list(self, _request: pb.ListRequest) -> pb.ListResponse:
        found = [one for one in self._registry if not one.is_sandbox]
        return pb.ListResponse(containers=map(self._container, found))

    async def _get(self, request: pb.ContainerRequest) -> pb.Details:
        container = self._registry.get(request.id)
        return _details(container, self._container(container))

    async def _wake(self, request: pb.ContainerRequest) -> pb.Container:
        container = self._registry.get(request.id)
        await standing.wake(container)
        return self._container(container)

    async def _sleep(self, request: pb.SleepRequest) -> pb.Container:
        container = self._registry.get(request.id)
        await standing.put_to_sleep(container, force=request.force)
        return self._container(container)

    def _container(self, container: Container) -> pb.Container:
        annotations = container.bundle.annotations
        scaler, now = container.scaler, standing.standing(container)
        history = scaler.history if scaler else History()
        asleep = container.state_now in (State.SCALED_DOWN, State.WAKING)
        return pb.Container(
            id=container.id,
            name=annotations.get(CRI_CONTAINER_NAME, ""),
            pod_name=annotations.get(CRI_SANDBOX_NAME, ""),
            pod_namespace=annotations.get(CRI_SANDBOX_NAMESPACE, ""),
            namespace=self._namespace,
            state=container.state_now.name,
            since_ns=history.checkpoints.last_ns if asleep else container.status().at_ns,
            memory_bytes=container.meter.read().memory if container.meter.cgroups else 0,
            image_bytes=scaler.image_bytes if scaler else 0,
            sleeps=history.checkpoints.count,
            sleep_errors=history.checkpoints.errors,
            wakes=history.restores.count,
            wake_errors=history.restores.errors,
            last_sleep_ns=history.checkpoints.last_ns,
            last_sleep_duration_ns=history.checkpoints.last_duration_ns,
            last_wake_ns=history.restores.last_ns,
            last_wake_duration_ns=_wake_duration_ns(history),
            next_sleep_ns=now.sleeps_ns,
            reason=now.reason,
        )


def _wake_duration_ns(history: History) -> int:
    """Until the app listened, where that is known, else until the restore had ended."""
    phases = history.last_wake.phases() if history.last_wake else {}
    return phases.get("listens") or history.restores.last_duration_ns


def _details(container: Container, shown: pb.Container) -> pb.Details:
    settings, scaler = container.settings, container.scaler
    details = pb.Details(
        container=shown,
        pid=container.init.live_pid,
        bundle=str(container.bundle.path),
        engine=scaler.engine.name if scaler else "",
        activation=settings.activation,
        scaledown_duration_ns=settings.scaledown_duration_ns,
        min_awake_ns=settings.min_awake_ns,
        open_connections=standing.open_connections(container),
    )
    for port in standing.view(scaler):
        used = port.last_activity_ns > 0
        details.ports.add(
            number=port.number,
            protocol="udp" if port.udp else "tcp",
            mode=port.mode.name.lower(),
            last_activity_ns=standing.unix_ns(port.last_activity_ns),
            last_source=standing.source(port) if used else "",
            of_node=used and port.of_node,
            unread=port.unread.name.lower() if used and port.unread else "",
        )
    if scaler is not None and (last := scaler.history.last_wake) is not None:
        details.last_wake.by = last.by
        for name, took_ns in last.phases().items():
            details.last_wake.phases.add(name=name, duration_ns=took_ns)
    if scaler is not None and (group := scaler.group) is not None:
        details.connections.update(group.stats())
        details.packets.update(group.counters())
    return details
