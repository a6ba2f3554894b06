"""Containers that sleep and wake on a real containerd, proved by an oracle in their memory."""

from __future__ import annotations

import hashlib
import os
import socket
import statistics
from concurrent.futures import ThreadPoolExecutor

from lab.node import Node
from lab.pods import Pod

from .conftest import MakePod

FAST = {"scaledown-duration": "500ms"}
LONG = {"scaledown-duration": "8s"}
"""For what is looked at while it is awake: a busy machine takes its time."""
CYCLES = 100


def asleep(make_pod: MakePod) -> tuple[Pod, str]:
    """A stateful pod that sleeps after one request, and its boot id."""
    pod = make_pod("stateful", FAST)
    boot_id = str(pod.get()["boot_id"])
    pod.containers[0].wait_asleep()
    return pod, boot_id


def keeps(before: dict[str, object], after: dict[str, object]) -> bool:
    """Whether the second of two answers in a row came from the same memory; else it is the first
    one of an app that began anew."""
    if after["boot_id"] == before["boot_id"]:
        assert after["count"] == int(str(before["count"])) + 1
        return True
    assert after["count"] == 1
    return False


def requests(lines: list[str]) -> list[int]:
    """The numbers of the requests that the app has logged."""
    return [int(line.split()[1]) for line in lines if line.startswith("request ")]


def received(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_many_cycles_keep_memory_and_log_and_leave_nothing(
    no_leaks: None, make_pod: MakePod
) -> None:
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    boot_id, first_pid = pod.get("/peek")["boot_id"], app.pid
    for cycle in range(1, CYCLES + 1):
        app.wait_asleep()
        assert app.pid == first_pid
        reply = pod.get()
        assert (reply["boot_id"], reply["count"]) == (boot_id, cycle)
    assert app.exec("echo", "alive").stdout == b"alive\n"
    app.wait_log(lambda lines: requests(lines) == list(range(1, CYCLES + 1)))


def test_wakes_over_ipv6_and_after_a_stop_all_is_gone(no_leaks: None, make_pod: MakePod) -> None:
    pod, boot_id = asleep(make_pod)
    reply = pod.get(address=pod.addresses[1])
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)


def test_probes_are_answered_and_wake_nothing(make_pod: MakePod) -> None:
    pod, _ = asleep(make_pod)
    (app,) = pod.containers
    took_ns = []
    probe = [("User-Agent", "kube-probe/1.33")]
    for _ in range(50):
        for address in pod.addresses:
            reply = pod.request("/healthz", address=address, headers=probe)
            assert reply.status == 204
            took_ns.append(reply.first_byte_ns)
            pod.node.connect(address, 8080, 5).close()
    assert not app.live_pids()
    print(f"probe p50 {statistics.median(took_ns) / 1e6:.2f} ms")


def test_a_thousand_connections_share_one_restore(make_pod: MakePod) -> None:
    pod, boot_id = asleep(make_pod)
    with ThreadPoolExecutor(1000) as pool:
        replies = list(pool.map(lambda _: pod.get(), range(1000)))
    assert {reply["boot_id"] for reply in replies} == {boot_id}
    assert sorted(int(str(reply["count"])) for reply in replies) == list(range(2, 1002))


def test_a_server_that_speaks_first_is_heard(make_pod: MakePod) -> None:
    pod, boot_id = asleep(make_pod)
    with pod.node.connect(pod.address, 8081, 30) as connection:
        assert boot_id.encode() in connection.recv(1000)


def test_a_half_closed_upload_arrives_whole(make_pod: MakePod) -> None:
    pod, _ = asleep(make_pod)
    upload = os.urandom(4 << 20)
    with pod.node.connect(pod.address, 8082, 30) as connection:
        connection.sendall(upload)
        connection.shutdown(socket.SHUT_WR)
        answer = received(connection)
    assert str(len(upload)).encode() in answer
    assert hashlib.sha256(upload).hexdigest().encode() in answer


def test_a_large_body_and_a_slow_reply_over_the_waking_connection(make_pod: MakePod) -> None:
    pod = make_pod("stateful", {"scaledown-duration": "15s"})  # longer than the reply takes
    boot_id = pod.get()["boot_id"]
    pod.containers[0].wait_asleep()
    body = os.urandom(8 << 20)
    reply = pod.request("/", method="POST", body=body).json()
    assert reply["sha256"] == hashlib.sha256(body).hexdigest()
    pod.containers[0].wait_asleep()
    assert pod.get("/slow?seconds=6")["boot_id"] == boot_id


def test_exec_wakes_and_kill_asleep_ends(make_pod: MakePod) -> None:
    pod, boot_id = asleep(make_pod)
    (app,) = pod.containers
    assert app.exec("sh", "-c", "echo $((6*7))").stdout == b"42\n"
    assert pod.get("/peek")["boot_id"] == boot_id
    app.wait_asleep()
    app.stop(0)
    assert app.status().exit_code == 137


def test_containerd_killed_while_asleep_changes_nothing(node: Node, make_pod: MakePod) -> None:
    pod, boot_id = asleep(make_pod)
    (app,) = pod.containers
    node.kill_containerd()
    reply = pod.get()
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)
    app.wait_asleep()
    node.start_containerd()
    assert pod.get()["count"] == 3
    assert app.exec("echo", "alive").stdout == b"alive\n"
    app.wait_log(lambda lines: requests(lines) == [1, 2, 3])


def test_the_shims_own_limits_are_not_the_containers(make_pod: MakePod) -> None:
    """Of init and of an exec, before and after a sleep: as under the stock shim."""
    stock = make_pod(handler="runc").containers[0]
    pod = make_pod(annotations={"scaledown-duration": "300ms"})
    app = pod.containers[0]
    for _ in range(2):
        for limits in ("/proc/1/limits", "/proc/self/limits"):
            assert app.exec("cat", limits).stdout == stock.exec("cat", limits).stdout
        app.wait_asleep()
        pod.get()
