"""The status service of real shims: what a manager on the node sees of a pod's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lab import waiting
from lab.node import Node
from lab.pods import Pod
from zeropod.api import shim_pb2 as pb
from zeropod.errors import Unavailable
from zeropod.task.status import SERVICE, SOCKET_ROOT
from zeropod.ttrpc import Client

from .conftest import MakePod
from .test_sleep import LONG

_LIMIT_S = 120


class Manager:
    """Connected to the only shim that there is."""

    def __init__(self, client: Client) -> None:
        self.client = client
        request = pb.SubscribeStatusRequest()
        self.heard = client.stream(SERVICE, "SubscribeStatus", request, pb.ContainerStatus)

    async def next(self) -> pb.ContainerStatus:
        return await asyncio.wait_for(anext(self.heard), _LIMIT_S)

    async def wait_for(self, phase: pb.ContainerPhase.ValueType) -> pb.ContainerStatus:
        """The next report, which must be of this phase."""
        found = await self.next()
        assert found.phase == phase, found
        return found

    async def metrics(self) -> pb.ContainerMetrics:
        response = await self.client.call(
            SERVICE, "Metrics", pb.MetricsRequest(), pb.MetricsResponse
        )
        (found,) = response.metrics
        return found


Manage = Callable[[], Awaitable[Manager]]


@pytest.fixture
async def manage(node: Node) -> AsyncIterator[Manage]:
    made: list[Client] = []

    async def connect() -> Manager:
        def alone() -> Path | None:  # the shim of the test before may be ending
            found = list(node.path(SOCKET_ROOT).iterdir())
            return found[0] if len(found) == 1 else None

        path = await asyncio.to_thread(waiting.until, "one shim's socket", alone)
        made.append(await Client.connect(str(path)))
        return Manager(made[-1])

    yield connect
    for client in made:
        client.close()


async def test_a_pods_life(no_leaks: None, make_pod: MakePod, manage: Manage) -> None:
    pod: Pod = await asyncio.to_thread(make_pod, "nginx", LONG)
    manager = await manage()
    now = await manager.next()
    if now.phase == pb.RUNNING:
        now = await manager.wait_for(pb.SCALED_DOWN)
    assert (now.name, now.pod_name, now.pod_namespace) == (
        "nginx",
        pod.spec.name,
        pod.spec.namespace,
    )
    assert now.id == pod.containers[0].id
    assert now.event_duration.ToNanoseconds() > 0
    assert not (await manager.metrics()).running
    reply = await asyncio.to_thread(pod.request, "/", port=80)
    assert reply.status == 200
    woken = await manager.wait_for(pb.RUNNING)
    assert woken.event_duration.ToNanoseconds() > 0
    figures = await manager.metrics()
    assert figures.last_restore.ToNanoseconds() > figures.last_checkpoint.ToNanoseconds() > 0
    assert not figures.checkpoint_errors and not figures.restore_errors
    await manager.wait_for(pb.SCALED_DOWN)
    await asyncio.to_thread(pod.remove)
    await manager.wait_for(pb.STOPPING)
    with pytest.raises(Unavailable):
        await manager.next()


async def test_what_does_not_sleep_says_why(
    no_leaks: None, make_pod: MakePod, manage: Manage
) -> None:
    pod: Pod = await asyncio.to_thread(make_pod, "nginx", {"scaledown-duration": "0"})
    manager = await manage()
    found = await manager.next()
    assert (found.phase, found.reason) == (pb.RUNNING, "scaledown-duration is 0")
    await asyncio.to_thread(pod.remove)


def _tls(pod: Pod) -> None:
    """A hello from the node, and what the app, which knows no TLS, says to it."""
    with pod.node.connect(pod.address, 8080) as made:
        made.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xfc\r\n\r\n")
        while made.recv(4096):
            pass


async def test_what_https_probes_do_to_it_is_told(
    no_leaks: None, make_pod: MakePod, manage: Manage
) -> None:
    """It is woken less and less often, until somebody else wakes it."""
    pod: Pod = await asyncio.to_thread(make_pod, "stateful", {"scaledown-duration": "2s"})
    manager = await manage()
    boot_id = (await asyncio.to_thread(pod.get))["boot_id"]
    now = await manager.next()
    if now.phase == pb.RUNNING:
        now = await manager.wait_for(pb.SCALED_DOWN)
    reasons = []
    for _ in range(4):
        await asyncio.to_thread(_tls, pod)
        reasons.append((await manager.wait_for(pb.RUNNING)).reason)
        await manager.wait_for(pb.SCALED_DOWN)
    text = "woken {} times in a row by TLS from the node, perhaps HTTPS probes: sleeps when idle {}"
    assert reasons == ["", "", text.format(3, "for 4 s"), text.format(4, "for 8 s")]
    reply = await asyncio.to_thread(pod.get)
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)
    assert (await manager.wait_for(pb.RUNNING)).reason == ""
    await asyncio.to_thread(pod.remove)
