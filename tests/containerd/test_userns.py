"""Pods in a user namespace of their own, as the kubelet makes them with `hostUsers: false`."""

from __future__ import annotations

import asyncio

import pytest

from lab import waiting
from lab.node import Node
from zeropod.api import shim_pb2 as pb
from zeropod.task.status import SERVICE, SOCKET_ROOT
from zeropod.ttrpc import Client

from .conftest import MakePod
from .test_sleep import FAST

_ROOT = 200_000
_LOOK = "cat /proc/self/uid_map /proc/self/gid_map; stat -c '%u:%g' /usr/bin/python3; id -u"


@pytest.mark.parametrize("handler", ["runc", "zeropod-by-path"])
def test_it_runs(no_leaks: None, make_pod: MakePod, handler: str) -> None:
    pod = make_pod("stateful", handler=handler, pod_spec={"user_namespace": _ROOT})
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    seen = app.exec("sh", "-c", _LOOK).stdout.decode().split()
    assert seen == [*["0", str(_ROOT), "65536"] * 2, "0:0", "0"]
    # Its files and its stdio are its own: it may write the one and open the other anew.
    said = app.exec("sh", "-c", "echo here > /made && cat /made && echo hi > /proc/1/fd/1")
    assert (said.exit_code, said.stdout) == (0, b"here\n"), said.stderr
    waiting.until("what it has written", lambda: "hi" in app.log())
    rootfs = pod.node.path(f"/proc/{app.pid}/root")
    assert (rootfs / "made").stat().st_uid == (rootfs / "app").stat().st_uid == _ROOT
    assert pod.get()["boot_id"] == boot_id


async def test_it_does_not_sleep_and_says_why(
    no_leaks: None, make_pod: MakePod, node: Node
) -> None:
    pod = await asyncio.to_thread(
        make_pod, "stateful", FAST, handler="zeropod-by-path", pod_spec={"user_namespace": _ROOT}
    )
    first = await asyncio.to_thread(pod.get)
    (path,) = node.path(SOCKET_ROOT).iterdir()
    client = await Client.connect(str(path))
    try:
        stream = client.stream(
            SERVICE, "SubscribeStatus", pb.SubscribeStatusRequest(), pb.ContainerStatus
        )
        status = await asyncio.wait_for(anext(stream), 60)
        assert status.phase == pb.RUNNING
        assert status.reason.startswith("its user namespace is the pod's")
        other = await asyncio.to_thread(make_pod, "nginx", FAST)
        await asyncio.to_thread(other.containers[0].wait_asleep)  # so it would have, too
    finally:
        client.close()
    assert pod.containers[0].live_pids()
    again = await asyncio.to_thread(pod.get)
    assert (again["boot_id"], again["count"]) == (first["boot_id"], int(str(first["count"])) + 1)
