"""Events: their messages, their order, and that none is lost while containerd is away."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from zeropod.api import events_pb2 as pb
from zeropod.api.events_ttrpc_pb2 import Envelope, ForwardRequest
from zeropod.container import events
from zeropod.errors import FailedPrecondition, Unavailable
from zeropod.oci.mounts import Mount
from zeropod.oci.reaper import Exit
from zeropod.task import events as module
from zeropod.task.events import SERVICE, Publisher, encode
from zeropod.ttrpc import Method, Server

EXIT = Exit(137, 1_700_000_000_000_000_005)
BOUND_S = 30


class Containerd:
    """containerd's end, which may go and come back. ``seen`` holds what arrived, over all lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[Envelope] = []
        self.fails: list[BaseException] = []
        self.hang = False
        self._server: Server | None = None
        self._arrived = asyncio.Condition()

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.path))
        listening.listen()
        methods = {"Forward": Method(ForwardRequest, self._forward, waits=True)}
        self._server = Server({SERVICE: methods})
        await self._server.serve(listening)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None

    async def until(self, count: int) -> list[Envelope]:
        """Wait for ``count`` events."""
        async with self._arrived:
            await asyncio.wait_for(self._arrived.wait_for(lambda: len(self.seen) >= count), BOUND_S)
        return self.seen

    async def _forward(self, request: ForwardRequest) -> Empty:
        async with self._arrived:
            self.seen.append(request.envelope)
            self._arrived.notify_all()
        if self.hang:
            await asyncio.Event().wait()
        if self.fails:
            raise self.fails.pop(0)
        return Empty()


@pytest.fixture
async def containerd(tmp_path: Path) -> AsyncIterator[Containerd]:
    peer = Containerd(tmp_path / "containerd.sock.ttrpc")
    yield peer
    await peer.stop()


@pytest.fixture
async def publisher(containerd: Containerd) -> AsyncIterator[Publisher]:
    publisher = Publisher(str(containerd.path), "k8s.io")
    yield publisher
    await publisher.close(0)


def ids(seen: list[Envelope]) -> list[str]:
    return [pb.TaskStart.FromString(envelope.event.value).container_id for envelope in seen]


def names(first: int, last: int) -> list[str]:
    return [f"c{number}" for number in range(first, last)]


def publish(publisher: Publisher, first: int, last: int) -> None:
    for name in names(first, last):
        publisher.publish(events.Started(name, 1))


async def test_an_envelope(containerd: Containerd, publisher: Publisher) -> None:
    await containerd.start()
    publisher.publish(events.Exited("c1", "e1", 9, EXIT))
    (envelope,) = await containerd.until(1)
    assert (envelope.namespace, envelope.topic) == ("k8s.io", "/tasks/exit")
    assert envelope.event.type_url == "containerd.events.TaskExit"
    assert envelope.timestamp.seconds > 1_700_000_000
    message = pb.TaskExit.FromString(envelope.event.value)
    assert (message.container_id, message.id, message.pid, message.exit_status) == (
        ("c1", "e1", 9, 137)
    )
    assert message.exited_at.ToNanoseconds() == EXIT.at_ns


async def test_order_is_kept(containerd: Containerd, publisher: Publisher) -> None:
    await containerd.start()
    publish(publisher, 0, 200)
    assert ids(await containerd.until(200)) == names(0, 200)


async def test_events_wait_until_containerd_is_there(
    containerd: Containerd, publisher: Publisher
) -> None:
    publish(publisher, 0, 5)
    await containerd.start()
    assert ids(await containerd.until(5)) == names(0, 5)


async def test_events_wait_while_containerd_restarts(
    containerd: Containerd, publisher: Publisher
) -> None:
    await containerd.start()
    publish(publisher, 0, 3)
    await containerd.until(3)
    await containerd.stop()
    publish(publisher, 3, 6)
    await containerd.start()
    publish(publisher, 6, 9)
    # The third may not have been answered before the end: then it comes again, in its place.
    seen = ids(await containerd.until(9))
    assert list(dict.fromkeys(seen)) == names(0, 9)


async def test_an_event_without_an_answer_is_sent_again(
    containerd: Containerd, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CALL_S", 0.05)
    containerd.hang = True
    await containerd.start()
    publish(publisher, 0, 2)
    await containerd.until(1)
    containerd.hang = False
    count = 3
    while "c1" not in (seen := ids(await containerd.until(count))):
        count += 1  # a slow machine: c0 was late once more
    assert seen.count("c0") >= 2
    assert list(dict.fromkeys(seen)) == ["c0", "c1"]


async def test_a_passing_refusal_is_tried_again(
    containerd: Containerd, publisher: Publisher
) -> None:
    containerd.fails = [Unavailable("starting")]
    await containerd.start()
    publish(publisher, 0, 2)
    assert ids(await containerd.until(3)) == ["c0", "c0", "c1"]


async def test_a_refused_event_does_not_block_the_others(
    containerd: Containerd, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    containerd.fails = [FailedPrecondition("no")]
    await containerd.start()
    publish(publisher, 0, 3)
    assert ids(await containerd.until(3)) == names(0, 3)
    assert "refused event /tasks/start: no" in caplog.text


async def test_what_waits_is_bounded_and_the_loss_is_told(
    containerd: Containerd,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "KEEP", 3)
    publish(publisher, 0, 5)
    await containerd.start()
    assert ids(await containerd.until(3)) == names(2, 5)
    assert caplog.text.count("event /tasks/start is dropped") == 2


async def test_an_event_dropped_on_its_way_takes_no_other_along(
    containerd: Containerd, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP", 3)
    await containerd.start()
    publish(publisher, 0, 1)
    await containerd.until(1)  # c0 has arrived, its answer has not
    publish(publisher, 1, 4)
    assert ids(await containerd.until(4)) == names(0, 4)


async def test_close_delivers_what_waits(containerd: Containerd) -> None:
    await containerd.start()
    publisher = Publisher(f"unix://{containerd.path}", "k8s.io")
    publish(publisher, 0, 20)
    await publisher.close(BOUND_S)
    assert ids(containerd.seen) == names(0, 20)


async def test_close_gives_up_loudly(
    containerd: Containerd, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(str(containerd.path), "k8s.io")
    publish(publisher, 0, 2)
    with caplog.at_level(logging.ERROR):
        await publisher.close(0.01)
    assert "2 events are not delivered" in caplog.text


async def test_without_an_address_events_go_nowhere() -> None:
    publisher = Publisher("", "k8s.io")
    publish(publisher, 0, 2)
    await publisher.close(BOUND_S)


STDIO = events.Stdio("/i", "/o", "/e", terminal=True)


@pytest.mark.parametrize(
    ("event", "topic", "message"),
    [
        (
            events.Created("c1", "/b", 9, STDIO, (Mount("bind", "/s", ("ro",), "/t"),), "/img"),
            "/tasks/create",
            pb.TaskCreate(
                container_id="c1",
                bundle="/b",
                rootfs=[{"type": "bind", "source": "/s", "target": "/t", "options": ["ro"]}],  # type: ignore[list-item]
                io=pb.TaskIO(stdin="/i", stdout="/o", stderr="/e", terminal=True),
                checkpoint="/img",
                pid=9,
            ),
        ),
        (events.Started("c1", 9), "/tasks/start", pb.TaskStart(container_id="c1", pid=9)),
        (
            events.ExecAdded("c1", "e1"),
            "/tasks/exec-added",
            pb.TaskExecAdded(container_id="c1", exec_id="e1"),
        ),
        (
            events.ExecStarted("c1", "e1", 9),
            "/tasks/exec-started",
            pb.TaskExecStarted(container_id="c1", exec_id="e1", pid=9),
        ),
        (events.OutOfMemory("c1"), "/tasks/oom", pb.TaskOOM(container_id="c1")),
        (events.Paused("c1"), "/tasks/paused", pb.TaskPaused(container_id="c1")),
        (events.Resumed("c1"), "/tasks/resumed", pb.TaskResumed(container_id="c1")),
        (
            events.Deleted("c1", "c1", 9, EXIT),
            "/tasks/delete",
            pb.TaskDelete(
                container_id="c1", pid=9, exit_status=137, exited_at=module.timestamp(EXIT.at_ns)
            ),
        ),
    ],
)
def test_messages(event: events.Event, topic: str, message: object) -> None:
    assert encode(event) == (topic, message)


def test_the_end_of_an_exec_record_is_no_event() -> None:
    assert encode(events.Deleted("c1", "e1", 9, EXIT)) is None


def test_an_event_without_a_message_is_a_bug() -> None:
    with pytest.raises(TypeError, match="no message"):
        encode("nonsense")
