"""A shim that is killed harms its own pod only, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from lab import processes, waiting
from lab.node import Node
from lab.pods import Pod
from lab.proto import cri_pb2 as pb

from .conftest import MakePod, bounded
from .test_sleep import FAST, requests

_UNKNOWN = 255
"""containerd's own exit code for a task whose shim is gone."""


def _kill(shim_pid: int) -> None:
    os.kill(shim_pid, signal.SIGKILL)
    waiting.until("the shim's end", lambda: not processes.alive(shim_pid))


def _awake(pod: Pod) -> None:
    """Nothing: it has just been asked."""


def _asleep(pod: Pod) -> None:
    pod.containers[0].wait_asleep()


def _dumping(pod: Pod) -> None:
    """CRIU has begun to write."""
    store = pod.containers[0].image_store()
    waiting.until("a dump", lambda: any(store.glob("*/images/*.img")))


def _waking(pod: Pod) -> None:
    """The restore has been fired, and CRIU works at it."""
    _asleep(pod)
    store = pod.containers[0].image_store()
    with _request(pod):
        waiting.until("a restore", lambda: any(store.glob("*/work/restore-1/restore.log")))


def _request(pod: Pod) -> socket.socket:
    """A connection with a request that nobody has answered yet."""
    connection = pod.node.connect(pod.address, 8080)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")
    return connection


@pytest.mark.parametrize("state", [_awake, _asleep, _dumping, _waking])
def test_a_killed_shim_is_reported_and_leaves_nothing(
    no_leaks: None, make_pod: MakePod, state: object
) -> None:
    other = make_pod("nginx", {"scaledown-duration": "500ms"})
    other.containers[0].wait_asleep()
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    pod.get()
    shim_pid = pod.shim_pid()  # found while it forks nothing
    state(pod)  # type: ignore[operator]
    _kill(shim_pid)
    assert app.wait_exited() == _UNKNOWN
    waiting.until("the end of its processes", lambda: not app.live_pids())
    waiting.until(
        "the sandbox's end",
        lambda: pod.node.cri.pod_status(pod.id).state == pb.SANDBOX_NOTREADY,
    )
    with pytest.raises(OSError):
        pod.get()
    with bounded("removal"):
        pod.remove()
    assert other.request(port=80).status == 200


def test_containerd_and_a_shim_killed_together(
    no_leaks: None, node: Node, make_pod: MakePod
) -> None:
    pod = make_pod("stateful", FAST)
    survivor = make_pod("nginx", {"scaledown-duration": "500ms"})
    for one in (pod, survivor):
        one.containers[0].wait_asleep()
    node.kill_containerd()
    _kill(pod.shim_pid())
    node.start_containerd()
    (app,) = pod.containers
    assert app.wait_exited() == _UNKNOWN
    pod.remove()
    assert survivor.request(port=80).status == 200
    assert survivor.containers[0].exec("echo", "alive").stdout == b"alive\n"


def test_containerd_killed_while_asleep_loses_no_line(node: Node, make_pod: MakePod) -> None:
    """Asleep before and after, awake in between: what is written meanwhile is read afterwards."""
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    app.wait_asleep()
    node.kill_containerd()
    for count in (2, 3):
        assert pod.get()["count"] == count
        app.wait_asleep()
    node.start_containerd()
    assert app.status().state == pb.CONTAINER_RUNNING
    assert app.exec("echo", "alive").stdout == b"alive\n"
    said = pod.get()
    assert (said["boot_id"], said["count"]) == (boot_id, 4)
    node.cri.reopen_log(app.id)
    app.wait_asleep()
    pod.get()

    app.wait_log(lambda lines: requests(lines) == [1, 2, 3, 4, 5])
