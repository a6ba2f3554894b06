"""The lab itself, proved with containerd's own shim: what fails here is not zeropod's fault."""

from __future__ import annotations

import hashlib
import json
import socket

import pytest

from lab import leaks, processes
from lab.node import Node

from .conftest import MakePod, use


@pytest.fixture(scope="module")
def used_node(node: Node) -> Node:
    """A node on which the stock handler has been used: nothing here depends on zeropod."""
    use(node, "runc")
    return node


def test_pod_runs_is_reached_and_leaves_nothing(no_leaks: None, make_pod: MakePod) -> None:
    pod = make_pod("stateful", handler="runc")
    ipv4, ipv6 = pod.addresses

    first = pod.get(address=ipv4)
    second = pod.get(address=ipv6)
    assert (first["count"], first["client"]) == (1, "10.88.0.1")
    assert (second["count"], second["client"]) == (2, "fd00:88::1")
    assert first["boot_id"] == second["boot_id"] == pod.get("/peek")["boot_id"]
    assert pod.get("/peek")["count"] == 2

    (app,) = pod.containers
    assert app.exec("cat", "/proc/1/cmdline").stdout.startswith(b"/usr/bin/python3\0")
    assert app.exec("sh", "-c", "exit 7").exit_code == 7
    expected = [
        f"boot {first['boot_id']}",
        "request 1 GET / from 10.88.0.1",
        "request 2 GET / from fd00:88::1",
    ]
    app.wait_log(lambda lines: lines == expected)
    assert app.live_pids() == {app.pid}
    assert processes.private_bytes(pod.shim_pid()) > 1 << 20
    app.stop(120)
    app.wait_asleep()
    assert app.status().exit_code == 0
    app.wait_log(lambda lines: lines == [*expected, "terminated at 2"])


def test_what_is_left_is_found(used_node: Node, make_pod: MakePod) -> None:
    before = leaks.snapshot(used_node)
    used_node.run(["sh", "-c", "touch /run/left; mkdir /run/m; mount -t tmpfs lab /run/m"])
    used_node.run(["ip", "netns", "add", "left"])
    make_pod("nginx", handler="runc")
    found = "\n".join(leaks.snapshot(used_node).more(before))
    used_node.run(["sh", "-c", "umount /run/m; rmdir /run/m; rm /run/left; ip netns delete left"])
    for expected in (
        "processes: ",
        "containerd-shim-runc-v2",
        "descriptors: ",
        "mounts: /run/m (tmpfs)",
        "network_namespaces: /run/netns/left",
        "interfaces: veth",
        "unix_sockets: /run/containerd/s/",
        "cgroups: ",
        "files: /run/left",
        "containers: sandbox ",
    ):
        assert expected in found, found


def test_bodies_banner_and_half_close(make_pod: MakePod) -> None:
    pod = make_pod("stateful", handler="runc")
    body = b"zeropod" * 150_000
    digest = hashlib.sha256(body).hexdigest()
    reply = pod.request(method="POST", body=body).json()
    assert (reply["size"], reply["sha256"]) == (len(body), digest)

    with pod.node.connect(pod.address, 8081) as speaks_first:
        assert speaks_first.recv(100) == f"stateful {reply['boot_id']}\n".encode()
        speaks_first.sendall(b"echo")
        assert speaks_first.recv(100) == b"echo"

    with pod.node.connect(pod.address, 8082) as reads_to_end:
        reads_to_end.sendall(body)
        reads_to_end.shutdown(socket.SHUT_WR)
        answer = json.loads(reads_to_end.makefile("rb").read())
    assert (answer["size"], answer["sha256"]) == (len(body), digest)


def test_nginx_answers(no_leaks: None, make_pod: MakePod) -> None:
    pod = make_pod("nginx", handler="runc")
    for address in pod.addresses:
        reply = pod.request(port=80, address=address)
        assert (reply.status, reply.body.split()[0]) == (200, b"nginx")


def test_containerd_killed_and_started_again(node: Node, make_pod: MakePod) -> None:
    pod = make_pod("stateful", handler="runc")
    boot_id = pod.get()["boot_id"]
    node.kill_containerd()
    assert pod.get()["boot_id"] == boot_id
    node.start_containerd()
    (app,) = pod.containers
    assert app.exec("cat", "/proc/1/comm").stdout == b"python3\n"
    assert pod.get()["count"] == 3
