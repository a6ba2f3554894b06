"""Pods of every form, as the kubelet makes them: what can sleep does, what cannot says why.

That something does not sleep is seen in its status, and over the time in which another pod with the
same idle time falls asleep twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from lab import waiting
from lab.container_images import NGINX, STATEFUL
from lab.cri import ContainerSpec
from lab.pods import Container, Pod
from lab.proto import cri_pb2 as pb
from zeropod.api import shim_pb2
from zeropod.errors import Code
from zeropod.task.status import SERVICE, SOCKET_ROOT
from zeropod.ttrpc import Client, RemoteError

from .conftest import MakePod
from .test_sleep import FAST, asleep, keeps

_SLEEPER = ["sh", "-c", "exec sleep 86400"]
_LATE = ["sh", "-c", "until [ -e /go/go ]; do sleep 0.1; done; exec python3 -u /app/stateful.py"]


def _reason(app: Container) -> str:
    """Why it does not sleep, as its shim tells the manager."""

    async def ask() -> str:
        for path in app.pod.node.path(SOCKET_ROOT).iterdir():
            client = await Client.connect(str(path))
            try:
                request = shim_pb2.ContainerRequest(id=app.id)
                kind = shim_pb2.ContainerStatus
                return (await client.call(SERVICE, "GetStatus", request, kind)).reason
            except RemoteError as error:
                if error.status != Code.NOT_FOUND:
                    raise
            finally:
                client.close()
        raise AssertionError(f"no shim knows {app.id}")

    return asyncio.run(ask())


def _bpf(pod: Pod) -> set[str]:
    """The kinds of BPF objects that the pod's shim holds: nobody else holds any of them."""
    found = set()
    for fd in Path(f"/proc/{pod.shim_pid()}/fd").iterdir():
        target = str(fd.readlink())
        if "bpf" in target:
            found.add(target)
    return found


def _others_sleep(make_pod: MakePod) -> None:
    other, _ = asleep(make_pod)
    other.get()
    other.containers[0].wait_asleep()


def _stays_awake(make_pod: MakePod, app: Container, reason: str) -> None:
    """It says why, and it is not touched: the process is the same."""
    pids = app.live_pids()
    assert pids and app.pid in pids
    assert _reason(app) == reason
    _others_sleep(make_pod)
    assert app.live_pids() == pids
    assert app.exec("echo", "alive").stdout == b"alive\n"
    assert _reason(app) == reason


# -- namespaces ----------------------------------------------------------------------------------


def test_the_hosts_network(no_leaks: None, make_pod: MakePod) -> None:
    """It is given by its path. Nothing is attached to the node's interfaces."""
    pod = make_pod("stateful", FAST, pod_spec={"network": pb.NODE})
    (app,) = pod.containers
    host = Path(f"/proc/{pod.node.pid}/ns/net").readlink()
    assert Path(f"/proc/{app.pid}/ns/net").readlink() == host
    before = pod.get()
    _stays_awake(make_pod, app, "it has the host's network")
    assert _bpf(pod) == set()
    assert keeps(before, pod.get())
    pod.remove()
    ordinary, _ = asleep(make_pod)
    assert _bpf(ordinary), "what is looked for is not what a shim holds"
    ordinary.remove()


@pytest.mark.parametrize(
    ("pid", "reason"),
    [
        (pb.NODE, "it has the host's pid namespace"),
        (pb.POD, "it shares its pid namespace, where its pids may be taken while it sleeps"),
    ],
    ids=["host", "shared"],
)
def test_a_pid_namespace_that_is_not_its_own(
    no_leaks: None, make_pod: MakePod, pid: pb.NamespaceMode.ValueType, reason: str
) -> None:
    pod = make_pod("stateful", FAST, pod_spec={"pid": pid})
    (app,) = pod.containers
    neighbour = pod.add(ContainerSpec("nginx", NGINX.reference))
    pod.wait_for_port(80)
    namespaces = {Path(f"/proc/{one.pid}/ns/pid").readlink() for one in (app, neighbour)}
    assert len(namespaces) == 1
    before = pod.get()
    _stays_awake(make_pod, app, reason)
    assert _reason(neighbour) == reason
    assert keeps(before, pod.get())
    for one in (app, neighbour):
        one.stop(0)
        assert one.wait_exited() == 137
    pod.remove()


# -- several containers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [{}, {"ports-map": "stateful=8080,8081;nginx=80"}], ids=["detected", "declared"]
)
def test_each_container_of_a_pod_sleeps_and_wakes_alone(
    no_leaks: None, make_pod: MakePod, more: Mapping[str, str]
) -> None:
    pod = make_pod("stateful", {"scaledown-duration": "2s", **more})
    (app,) = pod.containers
    web = pod.add(ContainerSpec("nginx", NGINX.reference))
    pod.wait_for_port(80)
    before = pod.get()
    for one in (app, web):
        one.wait_asleep()
    for _ in range(2):
        assert pod.request("/", port=80).status == 200
        assert not app.live_pids(), "woken by the other's connection"
        web.wait_asleep()
        before, after = pod.get(), before
        assert keeps(after, before)
        assert not web.live_pids(), "woken by the other's connection"
        app.wait_asleep()
    web.stop(0)
    assert web.wait_exited() == 137
    assert keeps(before, pod.get())
    pod.remove()


def test_a_sidecar_that_never_listens(no_leaks: None, make_pod: MakePod) -> None:
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    sidecar = pod.add(ContainerSpec("sidecar", NGINX.reference, command=_SLEEPER))
    before = pod.get()
    app.wait_asleep()
    _stays_awake(make_pod, sidecar, "it listens on no TCP port")
    assert keeps(before, pod.get())
    app.wait_asleep()
    pod.remove()


def test_init_containers_come_before(no_leaks: None, make_pod: MakePod) -> None:
    """They run to their end in the pod, one after another, before the app that sleeps."""
    pod = make_pod("stateful", {**FAST, "container-names": "app"}, command=_SLEEPER, listens=False)
    pod.containers[0].stop(0)
    for number in range(2):
        script = f"echo did {number}; exit {number}"
        name = f"init-{number}"
        first = pod.add(ContainerSpec(name, STATEFUL.reference, command=["sh", "-c", script]))
        assert (first.wait_exited(), first.log()) == (number, [f"did {number}"])
    app = pod.add(ContainerSpec("app", STATEFUL.reference))
    pod.wait_for_port(8080)
    before = pod.get()
    for _ in range(2):
        app.wait_asleep()
        before, after = pod.get(), before
        assert keeps(after, before)
    pod.remove()


def test_a_container_is_replaced_while_another_sleeps(no_leaks: None, make_pod: MakePod) -> None:
    """A crash, and what the kubelet does then: the next attempt listens on the same ports."""
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    web = pod.add(ContainerSpec("nginx", NGINX.reference))
    pod.wait_for_port(80)
    before = pod.get()
    for attempt in range(1, 3):
        for one in (app, web):
            one.wait_asleep()
        web.stop(0)
        assert web.wait_exited() == 137
        web = pod.add(ContainerSpec("nginx", NGINX.reference, attempt=attempt))
        pod.wait_for_port(80)
        assert not app.live_pids()
    web.wait_asleep()
    assert pod.request("/", port=80).status == 200
    assert keeps(before, pod.get())
    pod.remove()


def test_a_static_pod(no_leaks: None, make_pod: MakePod) -> None:
    """It comes from a file of the kubelet: no API object, a hash for a uid."""
    source = {
        "kubernetes.io/config.source": "file",
        "kubernetes.io/config.hash": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
        "kubernetes.io/config.seen": "2024-01-01T00:00:00.000000000Z",
        "zeropod.ctrox.dev/scaledown-duration": FAST["scaledown-duration"],
    }
    spec = {"annotations": source, "uid": source["kubernetes.io/config.hash"]}
    pod = make_pod("stateful", pod_spec={**spec, "namespace": "kube-system"})
    (app,) = pod.containers
    before = pod.get()
    app.wait_asleep()
    assert keeps(before, pod.get())
    pod.remove()


# -- listening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, "it listens on no TCP port"),
        (
            {"ports-map": "stateful=8080,8081"},
            "it listens on none of the ports that ports-map gives it: 8080, 8081",
        ),
    ],
    ids=["detected", "declared"],
)
def test_one_that_does_not_listen_yet_does_not_sleep(
    no_leaks: None, make_pod: MakePod, tmp_path: Path, more: Mapping[str, str], reason: str
) -> None:
    """It sleeps once it has begun to, and not in the middle of its start."""
    mounts = {"/go": tmp_path}
    pod = make_pod("stateful", {**FAST, **more}, command=_LATE, mounts=mounts, listens=False)
    (app,) = pod.containers
    assert _reason(app) == reason
    _others_sleep(make_pod)
    assert app.pid in app.live_pids() and _reason(app) == reason
    (tmp_path / "go").touch()
    pod.wait_for_port(8080)
    before = pod.get()
    app.wait_asleep()
    assert _reason(app) == ""
    assert keeps(before, pod.get())
    pod.remove()


# -- stdin and terminals -------------------------------------------------------------------------


def _stdin(app: Container) -> int:
    """containerd's end of its stdin, opened as for an attach."""
    folder = f"/run/containerd/io.containerd.grpc.v1.cri/containers/{app.id}/io"
    (fifo,) = app.pod.node.path(folder).rglob("*-stdin")
    return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def test_what_is_typed_into_a_sleeper_is_read(no_leaks: None, make_pod: MakePod) -> None:
    script = "cat <&3 & exec python3 -u /app/stateful.py"
    command = ["sh", "-c", f"exec 3<&0; {script}"]
    pod = make_pod("stateful", FAST, command=command, stdin=True)
    (app,) = pod.containers
    before = pod.get()
    app.wait_asleep()
    stdin = _stdin(app)
    os.write(stdin, b"typed\n")
    os.close(stdin)
    waiting.until("the line that was typed", lambda: app.log()[-1] == "typed", 60)
    assert keeps(before, pod.get())
    pod.remove()


def test_one_with_a_terminal_says_why_it_does_not_sleep(no_leaks: None, make_pod: MakePod) -> None:
    pod = make_pod("stateful", FAST, tty=True, stdin=True)
    _stays_awake(make_pod, pod.containers[0], "it has a terminal")
    pod.remove()
