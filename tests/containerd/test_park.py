"""The first connection from another pod has nobody in its way: the app sees who it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.container_images import STATEFUL
from lab.cri import ContainerSpec
from lab.pods import Container

from .conftest import MakePod
from .test_sleep import FAST, asleep

_RPC = Path(__file__).parents[1] / "netns/rpc.py"
_CHECK = "/grpc.health.v1.Health/Check"
_ASK = """
import sys, urllib.request
host, timeout = sys.argv[1], 60
print(urllib.request.urlopen(f"http://{host}:8080/", timeout=timeout).read().decode())
"""
_SEND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as made:
    made.settimeout(60)
    made.connect((sys.argv[1], 8053))
    made.send(b"who am I?")
    print(made.recv(4096).decode())
"""


def said(client: Container, script: str, host: str) -> dict[str, object]:
    """What the app answers to another container."""
    done = client.exec("python3", "-c", script, host)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def client(make_pod: MakePod) -> Container:
    """Somebody in a pod of his own, who does not sleep."""
    return make_pod("stateful", {"scaledown-duration": "0"}).containers[0]


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_the_app_sees_another_pod_as_itself(
    no_leaks: None, make_pod: MakePod, client: Container, version: str
) -> None:
    pod, boot_id = asleep(make_pod)
    (app,) = pod.containers
    which = version == "v6"
    host = f"[{pod.addresses[1]}]" if which else pod.addresses[0]
    for count in (2, 3):
        found = said(client, _ASK, host)
        assert found == {"boot_id": boot_id, "count": count, "client": client.pod.addresses[which]}
        app.wait_asleep()


def test_the_node_is_spliced_and_its_probes_wake_nobody(no_leaks: None, make_pod: MakePod) -> None:
    pod, boot_id = asleep(make_pod)
    probe = pod.request("/", headers=[("User-Agent", "kube-probe/1.31")])
    assert probe.status == 204 and not pod.containers[0].live_pids()
    assert pod.get() == {"boot_id": boot_id, "count": 2, "client": pod.address}


def test_a_grpc_client_on_the_node_is_told_that_a_sleeper_serves(
    no_leaks: None, make_pod: MakePod
) -> None:
    """A real one. The app, which knows no gRPC, is not asked."""
    pod, boot_id = asleep(make_pod)
    for address in pod.addresses:
        argv = [sys.executable, "-I", _RPC, "call", address, "8080", _CHECK]
        done = subprocess.run(pod.node.command(argv), capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "0801\n"), done.stderr
    assert not pod.containers[0].live_pids()
    assert pod.get() == {"boot_id": boot_id, "count": 2, "client": pod.address}


def test_with_splice_the_app_sees_its_own_address(
    no_leaks: None, make_pod: MakePod, client: Container
) -> None:
    pod = make_pod("stateful", {**FAST, "activation": "splice"})
    boot_id = pod.get()["boot_id"]
    pod.containers[0].wait_asleep()
    found = said(client, _ASK, pod.address)
    assert found == {"boot_id": boot_id, "count": 2, "client": pod.address}


def test_with_park_the_node_is_parked_too(no_leaks: None, make_pod: MakePod) -> None:
    pod = make_pod("stateful", {**FAST, "activation": "park"})
    boot_id = pod.get()["boot_id"]
    pod.containers[0].wait_asleep()
    found = pod.get()
    assert (found["boot_id"], found["count"]) == (boot_id, 2)
    assert found["client"] != pod.address


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_sibling_is_parked(no_leaks: None, make_pod: MakePod, host: str) -> None:
    """By loopback, on which raw packets come back."""
    annotations = {**FAST, "container-names": "stateful"}
    pod = make_pod("stateful", annotations)
    (app,) = pod.containers
    other = pod.add(ContainerSpec("sidecar", STATEFUL.reference, command=["sleep", "86400"]))
    boot_id = pod.get()["boot_id"]
    app.wait_asleep()
    found = said(other, _ASK, host)
    assert found == {"boot_id": boot_id, "count": 2, "client": host.strip("[]")}


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_the_first_datagram_is_answered(
    no_leaks: None, make_pod: MakePod, client: Container, version: str
) -> None:
    annotations = {**FAST, "ports-map": "stateful=8080,8053/udp"}
    pod = make_pod("stateful", annotations, env={"UDP": "8053"})
    (app,) = pod.containers
    which = version == "v6"
    boot_id = pod.get()["boot_id"]
    for count in (2, 3):
        app.wait_asleep()
        found = said(client, _SEND, pod.addresses[which])
        assert found == {"boot_id": boot_id, "count": count, "client": client.pod.addresses[which]}


def test_an_app_of_datagrams_alone(no_leaks: None, make_pod: MakePod, client: Container) -> None:
    """It sleeps once it is bound to what it declares; nothing is said over TCP."""
    annotations = {**FAST, "ports-map": "stateful=8053/udp"}
    pod = make_pod("stateful", annotations, env={"UDP": "8053"})
    (app,) = pod.containers
    first = said(client, _SEND, pod.address)
    app.wait_asleep()
    with pytest.raises(ConnectionRefusedError):
        pod.node.connect(pod.address, 8080)
    found = said(client, _SEND, pod.address)
    assert (found["boot_id"], found["count"]) == (first["boot_id"], 2)
