"""The shim's own service, `zeropod.shim.v1.Shim`: how its containers sleep, for the node's manager.

It listens beside containerd's socket of the same shim, in a directory that the manager lists. The
messages are those of the Go project of the same name, to which SubscribeStatus adds one thing: it
begins with what every container is at that moment, so that a manager that comes late knows all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration

from zeropod.api import shim_pb2 as pb
from zeropod.config import STATUS_ROOT
from zeropod.container.container import Container
from zeropod.container.report import Feed, History, Outcome, Report, Tally
from zeropod.task.events import timestamp
from zeropod.task.registry import Registry
from zeropod.ttrpc import Method

SERVICE: Final = "zeropod.shim.v1.Shim"
SOCKET_ROOT: Final = STATUS_ROOT

_PHASES: Final = {
    Outcome.SCALED_DOWN: pb.SCALED_DOWN,
    Outcome.RUNNING: pb.RUNNING,
    Outcome.STOPPING: pb.STOPPING,
    Outcome.CHECKPOINT_FAILED: pb.CHECKPOINT_FAILED,
    Outcome.RESTORE_FAILED: pb.RESTORE_FAILED,
}


def socket_path(shim: Path, root: Path = SOCKET_ROOT) -> Path:
    """Where the shim that serves containerd at ``shim`` serves the manager."""
    return root / f"{shim.name}.sock"


class StatusService:
    """Of the containers in ``registry``, the sandbox excepted."""

    def __init__(self, registry: Registry, feed: Feed) -> None:
        self._registry = registry
        self._feed = feed

    def handlers(self) -> Mapping[str, Mapping[str, Method]]:
        """For `ttrpc.Server`."""
        methods = {
            "Metrics": Method(pb.MetricsRequest, self._metrics),
            "GetStatus": Method(pb.ContainerRequest, self._status),
            "SubscribeStatus": Method(
                pb.SubscribeStatusRequest, stream=self._subscribe, waits=True
            ),
        }
        return {SERVICE: methods}

    async def _metrics(self, _request: pb.MetricsRequest) -> pb.MetricsResponse:
        return pb.MetricsResponse(metrics=[_metrics(found) for found in self._containers()])

    async def _status(self, request: pb.ContainerRequest) -> pb.ContainerStatus:
        return _status(self._registry.get(request.id).status())

    async def _subscribe(
        self, _request: pb.SubscribeStatusRequest
    ) -> AsyncIterator[pb.ContainerStatus]:
        with self._feed.subscription() as reports:
            for container in self._containers():
                yield _status(container.status())
            async for report in reports:
                yield _status(report)

    def _containers(self) -> list[Container]:
        return [found for found in self._registry if not found.is_sandbox]


def _status(report: Report) -> pb.ContainerStatus:
    return pb.ContainerStatus(
        id=report.id,
        name=report.name,
        pod_name=report.pod_name,
        pod_namespace=report.pod_namespace,
        phase=_PHASES[report.outcome],
        event_time=timestamp(report.at_ns),
        event_duration=_duration(report.duration_ns),
        event_log=report.log,
        reason=report.reason,
    )


def _metrics(container: Container) -> pb.ContainerMetrics:
    now = container.status()
    history = container.scaler.history if container.scaler else History()
    message = pb.ContainerMetrics(
        name=now.name,
        pod_name=now.pod_name,
        pod_namespace=now.pod_namespace,
        running=now.outcome is Outcome.RUNNING,
        checkpoint_errors=history.checkpoints.errors,
        restore_errors=history.restores.errors,
    )
    for name, tally in (("checkpoint", history.checkpoints), ("restore", history.restores)):
        _set_last(message, name, tally)
    return message


def _set_last(message: pb.ContainerMetrics, name: str, tally: Tally) -> None:
    """Absent until there has been one."""
    if tally.count:
        getattr(message, f"last_{name}").CopyFrom(timestamp(tally.last_ns))
        getattr(message, f"last_{name}_duration").CopyFrom(_duration(tally.last_duration_ns))


def _duration(nanoseconds: int) -> Duration:
    message = Duration()
    message.FromNanoseconds(nanoseconds)
    return message
