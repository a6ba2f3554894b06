"""The service for the command `zeropod`: what a container is, as it stands; wake and sleep."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zeropod._fastpath._activator import Mode, PortView, Unread
from zeropod.api import inspect_pb2 as pb
from zeropod.config import CRI_CONTAINER_NAME, CRI_SANDBOX_NAME, CRI_SANDBOX_NAMESPACE, Settings
from zeropod.container.idle import Reason, Wait
from zeropod.container.phase import Phase
from zeropod.container.report import History, WakeUp
from zeropod.container.state import State
from zeropod.errors import Code, FailedPrecondition
from zeropod.task.inspect import SERVICE, InspectService
from zeropod.task.registry import Registry
from zeropod.ttrpc import Client, RemoteError, Server

CLIENT = b"\0" * 10 + b"\xff\xff" + bytes([10, 1, 2, 3])
_NAMES = {CRI_CONTAINER_NAME: "app", CRI_SANDBOX_NAME: "web-1", CRI_SANDBOX_NAMESPACE: "default"}


class _Scaler:
    def __init__(self, container: Any) -> None:
        self.container = container
        self.phase = Phase.AWAKE
        self.reason = self.damped = ""
        self.engine = SimpleNamespace(name="runc")
        self.history = History()
        self.image_bytes = 0
        self.refusal = ""
        view = [
            PortView(80, False, Mode.PASS, time.monotonic_ns(), CLIENT, 5, True, Unread.TLS),
            PortView(53, True, Mode.PARK_ALL, 0, bytes(16), 0, False, Unread.NO),
        ]
        self.group: Any = SimpleNamespace(
            view=lambda: view, stats=lambda: {"probes": 3}, counters=lambda: {"parked": 4}
        )

    def why_awake(self) -> Wait:
        return Wait(Reason.PACKET, time.monotonic_ns() + 5 * 10**9)

    async def past(self, *phases: Phase) -> None:
        assert self.phase not in phases

    async def ensure_awake(self, cause: str) -> None:
        self.container.state_now, self.phase = State.RUNNING, Phase.AWAKE
        self.history.restores.done(60_000_000)

    async def sleep(self, *, force: bool) -> None:
        if self.refusal and not force:
            raise FailedPrecondition(self.refusal)
        self.container.state_now, self.phase = State.SCALED_DOWN, Phase.ASLEEP
        self.history.checkpoints.done(90_000_000)
        self.image_bytes = 7 << 20


def _container(id: str = "c1", **annotations: str) -> Any:
    made = SimpleNamespace(
        id=id,
        is_sandbox=False,
        bundle=SimpleNamespace(annotations=annotations or _NAMES, path=Path("/bundle")),
        settings=Settings(min_awake_ns=5),
        state_now=State.RUNNING,
        scaling_off_reason="",
        init=SimpleNamespace(live_pid=os.getpid()),
        meter=SimpleNamespace(cgroups=True, read=lambda: SimpleNamespace(memory=1 << 20)),
        status=lambda: SimpleNamespace(at_ns=17),
    )
    made.scaler = _Scaler(made)
    return made


class Rig:
    def __init__(self, client: Client, registry: Registry) -> None:
        self.client = client
        self.registry = registry

    def add(self, container: Any) -> Any:
        self.registry.reserve(container.id)
        self.registry.add(container)
        return container

    async def list(self) -> list[pb.Container]:
        answer = await self.client.call(SERVICE, "List", pb.ListRequest(), pb.ListResponse)
        return list(answer.containers)

    async def get(self, id: str = "c1") -> pb.Details:
        return await self.client.call(SERVICE, "Get", pb.ContainerRequest(id=id), pb.Details)

    async def wake(self) -> pb.Container:
        return await self.client.call(SERVICE, "Wake", pb.ContainerRequest(id="c1"), pb.Container)

    async def sleep(self, *, force: bool = False) -> pb.Container:
        request = pb.SleepRequest(id="c1", force=force)
        return await self.client.call(SERVICE, "Sleep", request, pb.Container)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    registry = Registry()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    server = Server(InspectService(registry, "k8s.io").handlers())
    await server.serve(listening)
    client = await Client.connect(str(tmp_path / "s"))
    yield Rig(client, registry)
    client.close()
    await server.close()


async def test_a_list_has_all_but_the_sandbox(rig: Rig) -> None:
    rig.add(_container("pause")).is_sandbox = True
    rig.add(_container("c1"))
    bare = rig.add(_container("c2", other="annotation"))
    bare.scaler, bare.scaling_off_reason, bare.meter.cgroups = None, "it has a terminal", None
    first, second = await rig.list()
    assert (first.id, first.name, first.pod_name, first.pod_namespace, first.namespace) == (
        *("c1", "app", "web-1", "default"),
        "k8s.io",
    )
    assert (first.state, first.since_ns, first.memory_bytes) == ("RUNNING", 17, 1 << 20)
    assert 0 < first.next_sleep_ns - time.time_ns() <= 5 * 10**9
    assert first.reason.startswith("the last packet was 10.1.2.3:5's, of the node")
    assert (second.id, second.name, second.pod_name) == ("c2", "", "")
    assert (second.reason, second.memory_bytes, second.next_sleep_ns) == ("it has a terminal", 0, 0)


async def test_a_sleep_and_a_wake(rig: Rig) -> None:
    container = rig.add(_container())
    asleep = await rig.sleep()
    assert (asleep.state, asleep.image_bytes, asleep.sleeps) == ("SCALED_DOWN", 7 << 20, 1)
    assert asleep.since_ns == asleep.last_sleep_ns == container.scaler.history.checkpoints.last_ns
    assert asleep.last_sleep_duration_ns == 90_000_000
    assert (asleep.reason, asleep.next_sleep_ns) == ("", 0)
    container.scaler.image_bytes = 0
    awake = await rig.wake()
    assert (awake.state, awake.wakes, awake.last_wake_duration_ns) == ("RUNNING", 1, 60_000_000)
    container.scaler.history.last_wake = WakeUp("a connection", 100, 145, 0, 130)
    assert (await rig.wake()).last_wake_duration_ns == 45  # until the app listens


async def test_why_a_sleep_is_refused(rig: Rig) -> None:
    container = rig.add(_container())
    container.scaler.refusal = "signal 15 was sent"
    with pytest.raises(RemoteError, match="signal 15 was sent") as caught:
        await rig.sleep()
    assert caught.value.status == Code.FAILED_PRECONDITION
    assert (await rig.sleep(force=True)).state == "SCALED_DOWN"


async def test_details(rig: Rig) -> None:
    container = rig.add(_container())
    container.scaler.history.last_wake = WakeUp("exec e1", 100, 0, 130, 160)
    found = await rig.get()
    assert (found.pid, found.bundle, found.engine) == (os.getpid(), "/bundle", "runc")
    assert (found.activation, found.min_awake_ns) == ("auto", 5)
    web, dns = found.ports
    assert (web.number, web.protocol, web.mode) == (80, "tcp", "pass")
    assert (web.last_source, web.of_node, web.unread) == ("10.1.2.3:5", True, "tls")
    assert abs(web.last_activity_ns - time.time_ns()) < 60 * 10**9
    assert (dns.number, dns.protocol, dns.mode) == (53, "udp", "park_all")
    assert (dns.last_source, dns.last_activity_ns, dns.unread) == ("", 0, "")
    phases = [(phase.name, phase.duration_ns) for phase in found.last_wake.phases]
    assert (found.last_wake.by, phases) == ("exec e1", [("first byte", 30), ("restored", 60)])
    assert dict(found.connections) == {"probes": 3} and dict(found.packets) == {"parked": 4}


async def test_details_of_what_does_not_scale(rig: Rig) -> None:
    container = rig.add(_container())
    container.scaler = None
    found = await rig.get()
    assert not found.ports and not found.last_wake.by and not found.engine


async def test_a_container_that_is_not_there(rig: Rig) -> None:
    with pytest.raises(RemoteError) as caught:
        await rig.get("other")
    assert caught.value.status == Code.NOT_FOUND
