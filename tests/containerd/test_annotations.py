"""Every annotation through CRI: a malformed one refuses the pod, a well-formed one takes effect."""

from __future__ import annotations

import socket
import time

import grpc
import pytest

from lab.container_images import NGINX
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Pod

from .conftest import Log, MakePod
from .test_sleep import FAST, LONG, asleep, received

PREFIX = "zeropod.ctrox.dev/"
_PROBE = [("User-Agent", "kube-probe/1.33")]
_DURATION = "a duration such as 10s, 1m30s or 0"
_BOOL = "true or false"
_BYTES = "a number of bytes from 1 to 65536"
_PORTS = "ports by container, such as web=80,81;dns=53/udp"

_MALFORMED = [
    ("container-names", "Web!", "container names separated by commas, such as web,api"),
    ("ports-map", "stateful:8080", _PORTS),
    ("ports-map", "stateful=65536", _PORTS),
    ("ports-map", "stateful=80/sctp", _PORTS),
    ("scaledown-duration", "soon", _DURATION),
    ("scaledown-duration", "-1s", _DURATION),
    ("scaledown-duration", "10", _DURATION),
    ("connect-timeout", "5 s", _DURATION),
    ("proxy-timeout", "1d", _DURATION),
    ("disable-checkpointing", "yes", _BOOL),
    ("disable-probe-detection", "", _BOOL),
    ("probe-buffer-size", "0", _BYTES),
    ("probe-buffer-size", "1k", _BYTES),
    ("restore-failure", "retry", "restart or fail"),
    ("stop-asleep", "never", "restore or discard"),
]


@pytest.mark.parametrize(
    ("name", "value", "expected"), _MALFORMED, ids=[f"{n}={v}" for n, v, _ in _MALFORMED]
)
def test_a_malformed_one_refuses_the_pod(
    no_leaks: None, node: Node, name: str, value: str, expected: str
) -> None:
    spec = PodSpec("refused", annotations={PREFIX + name: value}, cgroup_parent=node.cgroup_parent)
    with pytest.raises(grpc.RpcError) as refused:
        Pod(node, spec)
    text = f"annotation {PREFIX}{name}: {value!r} is not valid, expected {expected}"
    assert text in str(refused.value.details())


def test_what_this_version_does_not_act_on_is_named(make_pod: MakePod, log: Log) -> None:
    given = {"migrate": "stateful", "live-migrate": "stateful"}
    pod = make_pod("stateful", {**FAST, **given})
    named = ", ".join(sorted(PREFIX + name for name in given))
    (app,) = pod.containers
    log.wait_for(f"{app.id}: not supported by this version, without effect: {named}")
    app.wait_asleep()
    pod.get()


def test_container_names_choose(node: Node, make_pod: MakePod) -> None:
    pod = make_pod("stateful", {**FAST, "container-names": "stateful, other"})
    neighbour = pod.add(ContainerSpec("nginx", NGINX.reference))
    pod.wait_for_port(80)
    app, _ = pod.containers
    for _ in range(2):
        app.wait_asleep()
        pod.get()
    assert neighbour.pid in neighbour.live_pids()


def test_ports_map_decides_what_wakes(make_pod: MakePod) -> None:
    # Long enough for the app to begin: a port that is told it has from the start.
    pod = make_pod("stateful", {**LONG, "ports-map": "nginx=80;stateful=8081,8082"})
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    app.wait_asleep()
    with pytest.raises(ConnectionError):  # reset, where CRIU has the listener open a moment longer
        pod.get()
    assert not app.live_pids()
    with pod.node.connect(pod.address, 8081) as connection:
        assert connection.recv(100) == f"stateful {boot_id}\n".encode()


def test_without_checkpointing_it_begins_anew(no_leaks: None, make_pod: MakePod) -> None:
    pod = make_pod("stateful", {**FAST, "disable-checkpointing": "true"})
    (app,) = pod.containers
    boots = set()
    for _ in range(3):
        reply = pod.get()
        assert reply["count"] == 1
        boots.add(reply["boot_id"])
        app.wait_asleep()
        assert not list(app.image_store().rglob("*.img"))
    assert len(boots) == 3
    app.wait_log(lambda lines: [line.split()[0] for line in lines] == ["boot", "request"] * 3)
    pod.remove()


def test_scaledown_duration_zero_never_sleeps(make_pod: MakePod) -> None:
    """For as long as another pod takes to sleep twice."""
    pod = make_pod("stateful", {"scaledown-duration": "0"})
    other, _ = asleep(make_pod)
    other.get()
    other.containers[0].wait_asleep()
    assert pod.containers[0].live_pids()
    assert pod.containers[0].exec("echo", "alive").stdout == b"alive\n"


def test_without_probe_detection_probes_are_users(make_pod: MakePod) -> None:
    pod = make_pod("stateful", {**LONG, "disable-probe-detection": "true"})
    (app,) = pod.containers
    app.wait_asleep()
    assert pod.request("/", headers=_PROBE).json()["count"] == 1
    app.wait_asleep()
    pod.node.connect(pod.address, 8080).close()
    app.wait_awake()


@pytest.mark.parametrize(("size", "status"), [("4096", 204), ("64", 200)])
def test_probe_buffer_size_bounds_what_is_looked_at(
    make_pod: MakePod, size: str, status: int
) -> None:
    pod = make_pod("stateful", {**LONG, "probe-buffer-size": size})
    (app,) = pod.containers
    app.wait_asleep()
    late = [("X-Padding", "x" * 2000), *_PROBE]
    assert pod.request("/", headers=late).status == status
    assert bool(app.live_pids()) == (status == 200)


def test_connect_timeout_ends_the_wait_for_a_port(make_pod: MakePod, log: Log) -> None:
    """The app never listens on one of the ports that it is said to have.

    It waits longer than the scale-down duration: the app does not sleep meanwhile.
    """
    given = {**FAST, "ports-map": "stateful=8080,9999", "connect-timeout": "700ms"}
    pod = make_pod("stateful", given)
    (app,) = pod.containers
    app.wait_asleep()
    begin = time.monotonic()
    with pod.node.connect(pod.address, 9999) as connection:
        connection.sendall(b"hello")
        try:
            assert received(connection) == b""
        except ConnectionResetError:
            pass
    assert 0.7 <= time.monotonic() - begin < 60
    log.wait_for(f"{app.id}: 1 connections given up")
    assert pod.get()["count"] == 1


def test_proxy_timeout_ends_an_idle_waking_connection(make_pod: MakePod) -> None:
    pod = make_pod("stateful", {"scaledown-duration": "15s", "proxy-timeout": "1s"})
    (app,) = pod.containers
    app.wait_asleep()
    with pod.node.connect(pod.address, 8081) as connection:
        assert connection.recv(100).startswith(b"stateful ")
        begin = time.monotonic()
        connection.sendall(b"echo")
        assert connection.recv(100) == b"echo"
        try:
            assert connection.recv(100) == b""
        except ConnectionResetError:
            pass
        assert 1 <= time.monotonic() - begin < 15
    assert app.live_pids(), "it was the sleep that ended it"


def test_stop_asleep(no_leaks: None, make_pod: MakePod) -> None:
    """By default an app that handles SIGTERM is restored for it; ``discard`` spares that."""
    restored, _ = asleep(make_pod)
    (app,) = restored.containers
    app.stop(120)
    assert app.wait_exited() == 0
    app.wait_log(lambda lines: lines[-1:] == ["terminated at 1"])

    discarded = make_pod("stateful", {**FAST, "stop-asleep": "discard"})
    (app,) = discarded.containers
    discarded.get()
    app.wait_asleep()
    app.stop(120)
    assert app.wait_exited() == 128 + 15
    assert app.wait_log(lambda lines: len(lines) == 2)[-1].startswith("request ")
    for pod in (restored, discarded):
        pod.remove()


def test_every_kind_at_once(make_pod: MakePod) -> None:
    given = {
        "container-names": "stateful",
        "ports-map": "stateful=8080,8081/tcp,53/udp",
        "scaledown-duration": "0.5s",
        "disable-checkpointing": "false",
        "disable-probe-detection": "F",
        "probe-buffer-size": "2048",
        "connect-timeout": "1m30s",
        "proxy-timeout": "0",
        "restore-failure": "fail",
        "stop-asleep": "restore",
    }
    pod = make_pod("stateful", given)
    boot_id = pod.get()["boot_id"]
    pod.containers[0].wait_asleep()
    assert pod.request("/", headers=_PROBE).status == 204
    with pod.node.connect(pod.address, 8081) as connection:
        assert connection.recv(100) == f"stateful {boot_id}\n".encode()
        connection.shutdown(socket.SHUT_WR)
        assert received(connection) == b""
