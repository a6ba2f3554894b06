"""The service for the node's manager: what a container is, what it does, and its figures."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from zeropod.api import shim_pb2 as pb
from zeropod.container import report
from zeropod.container.container import Container
from zeropod.container.report import Feed, History, Outcome, Report
from zeropod.errors import Code
from zeropod.task.registry import Registry
from zeropod.task.status import SERVICE, StatusService, socket_path
from zeropod.ttrpc import Client, RemoteError, Server

AT = 1_700_000_000_123_456_789


def _report(outcome: Outcome, id: str = "c1", log: str = "") -> Report:
    return Report(id, "app", "pod", "ns", outcome, AT, 5_000_000, log, "no port yet")


@dataclass
class _Scaler:
    history: History = field(default_factory=History)


@dataclass
class _Container:
    id: str = "c1"
    outcome: Outcome = Outcome.RUNNING
    is_sandbox: bool = False
    scaler: _Scaler | None = field(default_factory=_Scaler)

    def status(self) -> Report:
        return _report(self.outcome, self.id)


@dataclass
class Rig:
    registry: Registry
    feed: Feed
    client: Client

    def add(self, container: _Container) -> None:
        self.registry.reserve(container.id)
        self.registry.add(cast("Container", container))

    async def metrics(self) -> list[pb.ContainerMetrics]:
        found = await self.client.call(SERVICE, "Metrics", pb.MetricsRequest(), pb.MetricsResponse)
        return list(found.metrics)

    def subscribe(self) -> AsyncIterator[pb.ContainerStatus]:
        request = pb.SubscribeStatusRequest()
        return self.client.stream(SERVICE, "SubscribeStatus", request, pb.ContainerStatus)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    registry, feed = Registry(), Feed()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    server = Server(StatusService(registry, feed).handlers())
    await server.serve(listening)
    client = await Client.connect(str(tmp_path / "s"))
    yield Rig(registry, feed, client)
    client.close()
    await server.close()


async def test_what_a_container_is(rig: Rig) -> None:
    rig.add(_Container(outcome=Outcome.SCALED_DOWN))
    request = pb.ContainerRequest(id="c1")
    found = await rig.client.call(SERVICE, "GetStatus", request, pb.ContainerStatus)
    assert (found.id, found.name, found.pod_name, found.pod_namespace) == ("c1", "app", "pod", "ns")
    assert found.phase == pb.SCALED_DOWN
    assert found.event_time.ToNanoseconds() == AT
    assert found.event_duration.ToNanoseconds() == 5_000_000
    assert found.reason == "no port yet"
    with pytest.raises(RemoteError) as caught:
        request = pb.ContainerRequest(id="other")
        await rig.client.call(SERVICE, "GetStatus", request, pb.ContainerStatus)
    assert caught.value.status == Code.NOT_FOUND


async def test_the_wire_is_that_of_the_go_project(rig: Rig) -> None:
    """Field by field; a Go manager skips what it does not know."""
    rig.add(_Container(outcome=Outcome.RUNNING))
    found = await anext(rig.subscribe())
    time, duration = found.event_time.SerializeToString(), found.event_duration.SerializeToString()
    expected = b"\x0a\x02c1\x12\x03app\x1a\x03pod\x22\x02ns\x28\x01"
    expected += b"\x32" + bytes([len(time)]) + time + b"\x3a" + bytes([len(duration)]) + duration
    assert found.SerializeToString().startswith(expected)


async def test_figures(rig: Rig) -> None:
    """Of every container but the sandbox; times are absent until there is one."""
    rig.add(_Container("pause", is_sandbox=True, scaler=None))
    rig.add(_Container("c1"))
    rig.add(_Container("c2", scaler=None))
    first, second = await rig.metrics()
    assert first.running and not first.HasField("last_checkpoint")
    assert second.running and not second.checkpoint_errors
    container = cast("_Container", rig.registry.get("c1"))
    assert container.scaler
    container.scaler.history.checkpoints.done(40_000_000)
    container.scaler.history.restores.errors = 2
    container.outcome = Outcome.SCALED_DOWN
    first, _ = await rig.metrics()
    assert not first.running
    assert first.last_checkpoint.ToNanoseconds() > AT
    assert first.last_checkpoint_duration.ToNanoseconds() == 40_000_000
    assert not first.HasField("last_restore")
    assert first.restore_errors == 2


async def test_a_subscriber_hears_all_from_what_is_now_on(rig: Rig) -> None:
    rig.add(_Container("c1", outcome=Outcome.SCALED_DOWN))
    streams = [rig.subscribe(), rig.subscribe()]
    for stream in streams:
        assert (await anext(stream)).phase == pb.SCALED_DOWN
    rig.feed.publish(_report(Outcome.RESTORE_FAILED, log="why\n  criu: last line"))
    rig.feed.publish(_report(Outcome.RUNNING))
    for stream in streams:
        failed, running = await anext(stream), await anext(stream)
        assert (failed.phase, failed.event_log) == (pb.RESTORE_FAILED, "why\n  criu: last line")
        assert running.phase == pb.RUNNING


async def test_one_who_does_not_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get everything."""
    monkeypatch.setattr(report, "_MAX_BEHIND", 2)
    feed = Feed()
    with feed.subscription() as slow, feed.subscription() as quick:
        for number in range(4):
            feed.publish(_report(Outcome.RUNNING, f"c{number}"))
            assert (await anext(quick)).id == f"c{number}"
        assert [(await anext(slow)).id, (await anext(slow)).id] == ["c0", "c1"]
        with pytest.raises(report.ResourceExhausted):
            await anext(slow)
    assert not feed._queues


def test_where_the_manager_finds_it() -> None:
    assert str(socket_path(Path("/run/containerd/s/abc"))) == "/run/zeropod/s/abc.sock"
