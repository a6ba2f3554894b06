"""A pod and a client in network namespaces of their own, joined by veth, for each test.

The pod is 10.9.0.2 and fd09::2, the client 10.9.0.1 and fd09::1. The namespaces live in two `cat`
processes that end with the test, so that a test that is killed leaves nothing behind. After each
test descriptors, threads, children and BPF objects must be those of before.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import waiting
from tests.netns import bpf
from zeropod._fastpath._activator import Activation, Activator, Event, EventKind, RestorePlan
from zeropod._fastpath._netns import socket_in

APP = Path(__file__).with_name("app.py")
PORT = 8080
BUSY_NS = 100_000_000  # ZP_BUSY_NS
POD_V4, CLIENT_V4 = "10.9.0.2", "10.9.0.1"
POD_V6, CLIENT_V6 = "fd09::2", "fd09::1"
OPTIONS = {
    "probe_detection": True,
    "probe_buffer_size": 1024,
    "connect_timeout_ns": 10_000_000_000,
    "proxy_timeout_ns": 0,
}


class Namespace:
    def __init__(self) -> None:
        script = "ip link set lo up && echo up && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout and self._holder.stdout.readline() == b"up\n"
        self.pid = self._holder.pid
        self.fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def run(self, *argv: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv], check=True)

    def ask(self, *argv: str) -> str:
        inside = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]
        return subprocess.run(inside, check=True, capture_output=True, text=True).stdout

    def make_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        made = socket.socket(fileno=socket_in(self.fd, family, kind))
        made.settimeout(60)
        return made

    def connect(self, host: str, port: int = PORT) -> socket.socket:
        made = self.make_socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.connect((host, port))
        return made

    def listen(
        self, port: int, family: int = socket.AF_INET, backlog: int = 128, host: str = ""
    ) -> socket.socket:
        made = self.make_socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(backlog)
        return made

    def close(self) -> None:
        os.close(self.fd)
        self._holder.communicate()


def reset(made: socket.socket) -> None:
    """Close a connection by a reset."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()


@dataclass
class Pod:
    """``count``: bytes of the file that every start of the app appends one byte to."""

    here: Namespace
    client: Namespace
    folder: Path
    activator: Activator
    activation: Activation
    children: list[int] = field(default_factory=list)
    plans: list[RestorePlan] = field(default_factory=list)
    seen: list[Event] = field(default_factory=list)

    def group(self, *ports: int, **options: object) -> int:
        return self.activator.add_group(
            ports or (PORT,), **{**OPTIONS, "activation": self.activation, **options}
        )

    def plan(self, mode: str, *ports: int, backlog: int = 128) -> RestorePlan:
        numbers = ",".join(map(str, ports or (PORT,)))
        made = RestorePlan(
            [sys.executable, "-I", "-S", str(APP), mode, numbers, str(backlog), "ready", "starts"],
            env={},
            cwd=str(self.folder),
            stdio=(-1, 2, 2),
            setns=[self.here.fd],
            ready_path=self.folder / "ready",
        )
        self.plans.append(made)
        return made

    def asleep(self, mode: str, *, backlog: int = 128, **options: object) -> int:
        group = self.group(**options)
        self.activator.hold(group)
        assert self.activator.arm(group, self.plan(mode, backlog=backlog)) is False
        return group

    @contextmanager
    def spliced(self, said: bytes) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A client's connection that was held, having said this, and the app's end of it."""
        group = self.group()
        self.activator.hold(group)
        made = self.client.connect(POD_V4)
        made.sendall(said)
        self.wait(EventKind.PENDING)
        with made, self.here.listen(PORT) as listener:
            self.activator.awake(group)
            app, _ = listener.accept()
            with app:
                app.settimeout(60)
                yield made, app

    @property
    def starts(self) -> int:
        with suppress(FileNotFoundError):
            return (self.folder / "starts").stat().st_size
        return 0

    def take_events(self) -> list[Event]:
        taken = self.activator.events()
        self.children += [event.pid for event in taken if event.kind == EventKind.FIRED]
        self.seen += taken
        return taken

    def wait(self, kind: EventKind, seconds: float = 60) -> Event:
        """The next event of a kind; those before it are in ``seen``."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.activator], [], [], left)[0]:
                for event in self.take_events():
                    if event.kind == kind:
                        return event
        raise AssertionError(f"no {kind.name} within {seconds} s; seen: {self.seen}")

    def wait_ready(self) -> None:
        """READY, be it among the events that were seen."""
        if EventKind.READY not in {event.kind for event in self.seen}:
            self.wait(EventKind.READY)

    def wait_quiet(self) -> int:
        """Wait out the time after activity in which everything counts. Returns when that was."""
        last_ns = self.activator.last_activity_ns(0)
        waiting.until("quiet", lambda: time.monotonic_ns() - last_ns > BUSY_NS, interval=0.01)
        return last_ns

    def kill_app(self) -> None:
        while self.children:
            pid = self.children.pop()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def close(self) -> None:
        with suppress(ValueError):
            self.take_events()
        self.activator.close()
        self.kill_app()
        for plan in self.plans:
            plan.close()


def _held() -> tuple[int, int]:
    """Descriptors and threads."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))  # noqa: PTH208


@pytest.fixture
def wire() -> Iterator[tuple[Namespace, Namespace]]:
    """The pod's namespace and the client's."""
    here, client = Namespace(), Namespace()
    peer = ("peer", "name", "eth0", "netns", str(here.pid))
    client.run("ip", "link", "add", "veth0", "type", "veth", *peer)
    for namespace, device, v4, v6 in (
        (client, "veth0", CLIENT_V4, CLIENT_V6),
        (here, "eth0", POD_V4, POD_V6),
    ):
        namespace.run("ip", "link", "set", device, "up")
        namespace.run("ip", "address", "add", f"{v4}/24", "dev", device)
        namespace.run("ip", "address", "add", f"{v6}/64", "dev", device, "nodad")
    yield here, client
    here.close()
    client.close()


@pytest.fixture
def activation() -> Activation:
    return Activation.SPLICE


@pytest.fixture
def make_pod(
    wire: tuple[Namespace, Namespace], tmp_path: Path, activation: Activation
) -> Iterator[Callable[..., Pod]]:
    """Opens a pod's activator; whatever it takes of the kernel must be given back."""
    before = _held()
    pods: list[Pod] = []
    ids: set[bpf.Id] = set()

    def make(*, count_loopback: bool = False, **options: bool) -> Pod:
        here, client = wire
        activator = Activator(here.fd, count_loopback=count_loopback, **options)
        pods.append(Pod(here, client, tmp_path, activator, activation))
        ids.update(bpf.held_ids())
        return pods[-1]

    yield make
    for pod in pods:
        pod.close()
    assert _held() == before
    bpf.wait_gone(ids)


@pytest.fixture
def pod(make_pod: Callable[..., Pod]) -> Pod:
    return make_pod()


@pytest.fixture
def node_pod(make_pod: Callable[..., Pod], wire: tuple[Namespace, Namespace]) -> Pod:
    """One whose node the client is."""
    with bpf.inside(wire[1].fd):
        return make_pod()


@pytest.fixture
def make_awake(node_pod: Pod) -> Callable[..., Pod]:
    """Woken from a sleep by nobody."""

    def make(mode: str, **options: object) -> Pod:
        group = node_pod.asleep(mode, **options)
        node_pod.activator.wake(group)
        node_pod.wait(EventKind.READY)
        return node_pod

    return make
