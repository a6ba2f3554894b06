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
