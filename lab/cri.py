"""A small client of containerd's CRI, with the kubelet's conventions.

One call of ours is one call of the interface. What the kubelet always sets is set here: log
directories and paths, a PID namespace per container, the pod's cgroup parent.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from lab.proto import cri_pb2 as pb

_Response = TypeVar("_Response", bound=Message)
LOG_ROOT = Path("/var/log/pods")
CALL_TIMEOUT_S = 240.0
_CPU_PERIOD_US = 100_000
_IDS = 65536

# What the kubelet sends for every container whose procMount is not Unmasked.
_MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What a pod is made from. ``handler`` is the runtime's name in containerd's configuration.

    ``network`` is NODE for hostNetwork; ``pid`` is POD for shareProcessNamespace, NODE for hostPID.
    ``user_namespace`` is the host's id of root in one of 65536 ids; 0 is the host's own.
    """

    name: str
    handler: str = "zeropod"
    namespace: str = "default"
    annotations: Mapping[str, str] = field(default_factory=dict)
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    cgroup_parent: str = ""
    user_namespace: int = 0
    network: pb.NamespaceMode.ValueType = pb.POD
    pid: pb.NamespaceMode.ValueType = pb.CONTAINER
    systemd: bool = False
    """systemd makes the pod's cgroup: a slice, as the kubelet names it."""

    @property
    def namespaces(self) -> pb.NamespaceOption:
        """Of the sandbox and of every container."""
        users = None
        if self.user_namespace:
            ids = [pb.IDMapping(host_id=self.user_namespace, container_id=0, length=_IDS)]
            users = pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids)
        return pb.NamespaceOption(network=self.network, pid=self.pid, userns_options=users)

    @property
    def cgroup(self) -> str:
        """What containerd is told: a path, or the slice's name."""
        if self.systemd:
            return f"kubepods-pod{self.uid.replace('-', '_')}.slice"
        return f"{self.cgroup_parent}/kubepods/pod{self.uid}"

    @property
    def log_directory(self) -> Path:
        return LOG_ROOT / f"{self.namespace}_{self.name}_{self.uid}"

    def message(self) -> pb.PodSandboxConfig:
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(
                name=self.name, uid=self.uid, namespace=self.namespace, attempt=0
            ),
            hostname="" if self.network == pb.NODE else self.name,
            log_directory=str(self.log_directory),
            labels={
                "io.kubernetes.pod.name": self.name,
                "io.kubernetes.pod.namespace": self.namespace,
                "io.kubernetes.pod.uid": self.uid,
            },
            annotations=dict(self.annotations),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=self.cgroup,
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=self.namespaces),
            ),
        )


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a container is made from. ``mounts`` maps paths inside to paths on the node."""

    name: str
    image: str
    attempt: int = 0
    command: Sequence[str] = ()
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)
    memory_limit: int = 0
    """Bytes; 0 is none."""
    cpu_quota_us: int = 0
    """CPU time per 100 ms; 0 is no bound."""
    stdin: bool = False
    tty: bool = False
    seccomp: bool = True
    """The runtime's default profile, as ``seccompDefault`` of the kubelet sets it."""
    no_new_privs: bool = False
    drop_capabilities: Sequence[str] = ()
    oom_score_adj: int = 0

    @property
    def log_path(self) -> str:
        return f"{self.name}/{self.attempt}.log"

    def message(self, pod: PodSpec) -> pb.ContainerConfig:
        kind = pb.SecurityProfile
        profile = kind.RuntimeDefault if self.seccomp else kind.Unconfined
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=self.name, attempt=self.attempt),
            image=pb.ImageSpec(image=self.image),
            command=self.command,
            args=self.args,
            envs=[pb.KeyValue(key=key, value=value) for key, value in self.env.items()],
            mounts=[
                pb.Mount(container_path=inside, host_path=str(outside))
                for inside, outside in self.mounts.items()
            ],
            labels={"io.kubernetes.container.name": self.name},
            log_path=self.log_path,
            stdin=self.stdin,
            tty=self.tty,
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(
                    cpu_shares=2,
                    cpu_quota=self.cpu_quota_us,
                    cpu_period=_CPU_PERIOD_US if self.cpu_quota_us else 0,
                    memory_limit_in_bytes=self.memory_limit,
                    oom_score_adj=self.oom_score_adj,
                ),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=pod.namespaces,
                    seccomp=pb.SecurityProfile(profile_type=profile),
                    capabilities=pb.Capability(drop_capabilities=self.drop_capabilities),
                    no_new_privs=self.no_new_privs,
                    masked_paths=_MASKED,
                    readonly_paths=_READONLY,
                ),
            ),
        )


@dataclass(frozen=True, slots=True)
class ExecResult:
    stdout: bytes
    stderr: bytes
    exit_code: int


class Cri:
    """The runtime service at a unix socket. Errors are grpc.RpcError, as containerd sent them."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )

    def close(self) -> None:
        self._channel.close()

    def _call(
        self, method: str, request: Message, kind: type[_Response], timeout: float = CALL_TIMEOUT_S
    ) -> _Response:
        call: grpc.UnaryUnaryMultiCallable[Message, _Response] = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=kind.FromString,
        )
        response = call(request, timeout=timeout, wait_for_ready=True)
        assert isinstance(response, kind)
        return response

    def version(self, timeout: float = CALL_TIMEOUT_S) -> pb.VersionResponse:
        return self._call("Version", pb.VersionRequest(), pb.VersionResponse, timeout)

    def conditions(self) -> dict[str, str]:
        """Each condition of the runtime: empty when it is met, else its message."""
        status = self._call("Status", pb.StatusRequest(), pb.StatusResponse).status
        return {c.type: "" if c.status else f"{c.reason}: {c.message}" for c in status.conditions}

    def run_pod(self, spec: PodSpec) -> str:
        """RunPodSandbox. Returns the sandbox id."""
        request = pb.RunPodSandboxRequest(config=spec.message(), runtime_handler=spec.handler)
        return self._call("RunPodSandbox", request, pb.RunPodSandboxResponse).pod_sandbox_id

    def stop_pod(self, pod: str) -> None:
        request = pb.StopPodSandboxRequest(pod_sandbox_id=pod)
        self._call("StopPodSandbox", request, pb.StopPodSandboxResponse)

    def remove_pod(self, pod: str) -> None:
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=pod)
        self._call("RemovePodSandbox", request, pb.RemovePodSandboxResponse)

    def pod_status(self, pod: str) -> pb.PodSandboxStatus:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod)
        return self._call("PodSandboxStatus", request, pb.PodSandboxStatusResponse).status

    def pod_info(self, pod: str) -> dict[str, object]:
        """containerd's own record of a sandbox: pid, runtimeSpec, cniResult …"""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        return _info(self._call("PodSandboxStatus", request, pb.PodSandboxStatusResponse).info)

    def pods(self) -> list[pb.PodSandbox]:
        request = pb.ListPodSandboxRequest()
        return list(self._call("ListPodSandbox", request, pb.ListPodSandboxResponse).items)

    def create(self, pod: str, spec: ContainerSpec, pod_spec: PodSpec) -> str:
        """CreateContainer. Returns the container id."""
        request = pb.CreateContainerRequest(
            pod_sandbox_id=pod, config=spec.message(pod_spec), sandbox_config=pod_spec.message()
        )
        return self._call("CreateContainer", request, pb.CreateContainerResponse).container_id

    def start(self, container: str) -> None:
        request = pb.StartContainerRequest(container_id=container)
        self._call("StartContainer", request, pb.StartContainerResponse)

    def stop(self, container: str, timeout: int = 0) -> None:
        """StopContainer: the stop signal, then SIGKILL after ``timeout`` seconds."""
        request = pb.StopContainerRequest(container_id=container, timeout=timeout)
        self._call("StopContainer", request, pb.StopContainerResponse)

    def remove(self, container: str) -> None:
        request = pb.RemoveContainerRequest(container_id=container)
        self._call("RemoveContainer", request, pb.RemoveContainerResponse)

    def status(self, container: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=container)
        return self._call("ContainerStatus", request, pb.ContainerStatusResponse).status

    def info(self, container: str) -> dict[str, object]:
        """containerd's own record of a container: pid, runtimeSpec, snapshotKey …"""
        request = pb.ContainerStatusRequest(container_id=container, verbose=True)
        return _info(self._call("ContainerStatus", request, pb.ContainerStatusResponse).info)

    def containers(self) -> list[pb.Container]:
        response = self._call(
            "ListContainers", pb.ListContainersRequest(), pb.ListContainersResponse
        )
        return list(response.containers)

    def exec(self, container: str, argv: Sequence[str], timeout: int = 120) -> ExecResult:
        """ExecSync; ``timeout`` in seconds."""
        request = pb.ExecSyncRequest(container_id=container, cmd=argv, timeout=timeout)
        done = self._call("ExecSync", request, pb.ExecSyncResponse)
        return ExecResult(done.stdout, done.stderr, done.exit_code)

    def stats(self, container: str) -> pb.ContainerStats:
        request = pb.ContainerStatsRequest(container_id=container)
        return self._call("ContainerStats", request, pb.ContainerStatsResponse).stats

    def update(self, container: str, resources: pb.LinuxContainerResources) -> None:
        request = pb.UpdateContainerResourcesRequest(container_id=container, linux=resources)
        self._call("UpdateContainerResources", request, pb.UpdateContainerResourcesResponse)

    def reopen_log(self, container: str) -> None:
        request = pb.ReopenContainerLogRequest(container_id=container)
        self._call("ReopenContainerLog", request, pb.ReopenContainerLogResponse)


def _info(info: Mapping[str, str]) -> dict[str, object]:
    found = json.loads(info["info"])
    assert isinstance(found, dict)
    return found
