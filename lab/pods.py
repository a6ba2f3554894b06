"""Pods of the node as tests use them: run, asked over HTTP, looked into, removed whole."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import grpc

from lab import cgroups, kernel, processes, waiting
from lab.cri import ContainerSpec, ExecResult, PodSpec
from lab.node import Node
from lab.proto import cri_pb2 as pb
from lab.steps import remove

_REMOVE_TIMEOUT_S = 120
_TASKS = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, and the nanoseconds from the first SYN to its first byte and to its last."""

    status: int
    body: bytes
    first_byte_ns: int
    whole_ns: int

    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


def _remove_cgroup(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


class _Connection(http.client.HTTPConnection):
    """An HTTP connection whose client is the node."""

    def __init__(self, node: Node, address: str, port: int, timeout: float) -> None:
        super().__init__(address, port, timeout=timeout)
        self._node = node
        self._seconds = timeout

    def connect(self) -> None:
        self.sock = self._node.connect(self.host, self.port, self._seconds)


class Container:
    """A container of a pod."""

    def __init__(self, pod: Pod, container_id: str, spec: ContainerSpec) -> None:
        self.pod = pod
        self.id = container_id
        self.spec = spec

    @property
    def _cgroup(self) -> Path:
        """Below the root of each hierarchy."""
        spec = self.pod.spec
        if spec.systemd:
            return Path("kubepods.slice") / spec.cgroup / f"cri-containerd-{self.id}.scope"
        return Path(cgroups.NAME) / "kubepods" / f"pod{spec.uid}" / self.id

    @property
    def pid(self) -> int:
        """The pid of init that containerd was told."""
        pid = self.pod.node.cri.info(self.id)["pid"]
        assert isinstance(pid, int)
        return pid

    def status(self) -> pb.ContainerStatus:
        return self.pod.node.cri.status(self.id)

    def exec(self, *argv: str) -> ExecResult:
        return self.pod.node.cri.exec(self.id, argv)

    def log_file(self) -> Path:
        return self.pod.node.path(self.pod.spec.log_directory / self.spec.log_path)

    def log(self) -> list[str]:
        """The lines that the container wrote, without the CRI's timestamp, stream and tag."""
        whole, _, _ = self.log_file().read_text().rpartition("\n")
        return [line.split(" ", 3)[3] for line in whole.splitlines()]

    def wait_log(self, ask: Callable[[list[str]], bool]) -> list[str]:
        """Wait until its lines are as asked for: containerd writes them a little later."""

        def as_asked() -> list[str] | None:
            lines = self.log()
            return lines if ask(lines) else None

        try:
            return waiting.until("lines", as_asked)
        except TimeoutError as error:
            raise TimeoutError(f"the log of {self.spec.name} is {self.log()}") from error

    def live_pids(self) -> set[int]:
        """The processes of the container that run: none while it is asleep."""
        group = cgroups.tracking().parent / self._cgroup
        try:
            pids = [int(line) for line in (group / "cgroup.procs").read_text().split()]
        except OSError:
            return set()
        return {pid for pid in pids if processes.alive(pid)}

    def only_pid(self) -> int:
        """Its one process, once those that have restored it are gone."""

        def one() -> int | None:
            pids = self.live_pids()
            return pids.pop() if len(pids) == 1 else None

        return waiting.until("end of the restore", one)

    def cgroups(self) -> list[Path]:
        """The container's cgroup in each hierarchy that has one: none while it is asleep."""
        folders = [folder / self._cgroup for folder in cgroups.hierarchies()]
        return [folder for folder in folders if folder.exists()]

    def wait_asleep(self, timeout: float = 120) -> None:
        """Wait until no process of the container is left, though it counts as running."""
        waiting.until(f"sleep of {self.spec.name}", lambda: not self.live_pids(), timeout)

    def image_store(self) -> Path:
        """Where zeropod keeps the container's images: a numbered directory per sleep."""
        return self.pod.node.path(f"/var/lib/zeropod/i/k8s.io.{self.id}")

    def images(self) -> Path:
        """What CRIU wrote for the present sleep, once it is sealed."""

        def sealed() -> Path | None:
            sleeps = (path for path in self.image_store().iterdir() if path.name.isdecimal())
            newest = max(sleeps, key=lambda path: int(path.name))
            return newest / "images" if (newest / "manifest.json").exists() else None

        return waiting.until(f"images of {self.spec.name}", sealed)

    def wait_exited(self, timeout: float = 120) -> int:
        """Wait until containerd reports the container's exit. Returns the exit code."""

        def exited() -> pb.ContainerStatus | None:
            status = self.status()
            return status if status.state == pb.CONTAINER_EXITED else None

        return waiting.until(f"exit of {self.spec.name}", exited, timeout).exit_code

    def wait_awake(self, timeout: float = 120) -> None:
        """Wait until it has processes again."""
        waiting.until(f"wake-up of {self.spec.name}", lambda: bool(self.live_pids()), timeout)

    def stop(self, timeout: int = 10) -> None:
        self.pod.node.cri.stop(self.id, timeout)

    def remove(self) -> None:
        self.pod.node.cri.remove(self.id)


class Pod:
    """A sandbox and its containers."""

    def __init__(self, node: Node, spec: PodSpec) -> None:
        self.node = node
        self.spec = spec
        begin_ns = time.monotonic_ns()
        self.id = node.cri.run_pod(spec)
        self.run_ns = time.monotonic_ns() - begin_ns
        """How long RunPodSandbox took."""
        self.containers: list[Container] = []
        network = node.cri.pod_status(self.id).network
        self.addresses = [network.ip, *(more.ip for more in network.additional_ips)]
        """IPv4 first, then IPv6; a pod with the host's network is asked at the loopback."""
        if spec.network == pb.NODE:
            self.addresses = ["127.0.0.1"]

    @property
    def address(self) -> str:
        return self.addresses[0]

    @cached_property
    def netns(self) -> Path:
        """The pod's network namespace, for as long as its sandbox runs."""
        return Path(f"/proc/{self.node.cri.pod_info(self.id)['pid']}/ns/net")

    def tcp_socket(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A TCP socket in the pod's network namespace."""
        with kernel.network_namespace(self.netns):
            return socket.socket(family, socket.SOCK_STREAM)

    def shim_pid(self) -> int:
        """The shim that serves this pod: whoever listens on the socket that containerd was told."""
        bundle = self.node.path(f"{_TASKS}/{self.id}")
        bootstrap = bundle / "bootstrap.json"
        if bootstrap.exists():
            address = str(json.loads(bootstrap.read_text())["address"])
        else:
            address = (bundle / "address").read_text()
        net = Path(f"/proc/{self.node.pid}/net")
        path = address.removeprefix("unix://")
        (pid,) = processes.holders_of_socket(net, path, cgroups.processes())
        return pid

    def add(self, spec: ContainerSpec) -> Container:
        """Create a container and start it."""
        container_id = self.node.cri.create(self.id, spec, self.spec)
        container = Container(self, container_id, spec)
        self.containers.append(container)
        self.node.cri.start(container_id)
        return container

    def remove(self) -> None:
        """Stop and remove everything, as the kubelet does: again where it fails, until it is done.

        While it cleans up after a shim that was killed, containerd may refuse, or say that all is
        done though it is not: then there are processes in the pod's cgroup for a while.
        """
        waiting.until(f"removal of pod {self.spec.name}", self._try_remove, _REMOVE_TIMEOUT_S)
        remove(self.node.path(self.spec.log_directory))
        for hierarchy in cgroups.hierarchies():
            folder = hierarchy / cgroups.NAME / "kubepods" / f"pod{self.spec.uid}"
            ended = partial(_remove_cgroup, folder)
            waiting.until(f"empty cgroup of pod {self.spec.name}", ended, _REMOVE_TIMEOUT_S)

    def _try_remove(self) -> bool:
        cri = self.node.cri
        steps: list[Callable[[], None]] = []
        for container in self.containers:
            steps.append(partial(cri.stop, container.id, 0))
            steps.append(partial(cri.remove, container.id))
        steps += [partial(cri.stop_pod, self.id), partial(cri.remove_pod, self.id)]
        for step in steps:
            try:
                step()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:  # else an earlier try did it
                    self.last_refusal = error
                    return False
        return True

    # asked over the network

    def request(
        self,
        path: str = "/",
        *,
        port: int = 8080,
        address: str = "",
        method: str = "GET",
        body: bytes | None = None,
        headers: Sequence[tuple[str, str]] = (),
        timeout: float = 120,
    ) -> Reply:
        """One HTTP request over a connection of its own. OSError where it fails."""
        connection = _Connection(self.node, address or self.address, port, timeout)
        try:
            begin_ns = time.monotonic_ns()
            connection.request(method, path, body, {"Connection": "close", **dict(headers)})
            response = connection.getresponse()
            first_ns = time.monotonic_ns()
            data = response.read()
            end_ns = time.monotonic_ns()
        finally:
            connection.close()
        return Reply(response.status, data, first_ns - begin_ns, end_ns - begin_ns)

    def get(self, path: str = "/", *, port: int = 8080, address: str = "") -> dict[str, object]:
        """GET that must be answered with 200 and JSON."""
        reply = self.request(path, port=port, address=address)
        assert reply.status == 200, reply
        return reply.json()

    def wait_for_port(self, port: int, timeout: float = 120) -> None:
        """Wait until the app listens: for the start of a pod only, a sleeping one would wake."""

        def listens() -> bool:
            try:
                self.node.connect(self.address, port, timeout).close()
            except ConnectionRefusedError:
                return False
            return True

        waiting.until(f"listener on port {port} of pod {self.spec.name}", listens, timeout)
