"""The containers' events on their way to containerd: in order, none lost, none doubled on purpose.

They go out one after another over one ttrpc connection. While containerd is away they are kept (the
newest `KEEP` of them; what is dropped beyond that is logged) and sent when it is back. An event
whose answer did not arrive is sent again: containerd may then see it twice, never not at all. One
that containerd refuses is logged and given up, for it would block all later ones.

As under the stock shim the end of an exec's record is no event: only a task's is published.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from functools import singledispatch
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from zeropod.api import events_pb2 as pb
from zeropod.api.events_ttrpc_pb2 import Envelope, ForwardRequest
from zeropod.api.types_pb2 import Mount
from zeropod.container import events
from zeropod.errors import Code, DeadlineExceeded, Unavailable, ZeropodError
from zeropod.ttrpc import Client, RemoteError

log = logging.getLogger(__name__)

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
KEEP: Final = 4096
_CALL_S: Final = 5.0
_RETRY_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_PASSING: Final = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED}
)
_NS: Final = 1_000_000_000


def timestamp(unix_ns: int) -> Timestamp:
    return Timestamp(seconds=unix_ns // _NS, nanos=unix_ns % _NS)


class Publisher:
    """Delivers events to the ttrpc socket at ``address``; without one they go nowhere.

    `publish` never waits. `close` gives what is left some seconds and then gives up, loudly.
    """

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._waiting: deque[Envelope] = deque()
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.get_running_loop().create_task(self._deliver(), name="events")

    def publish(self, event: events.Event) -> None:
        """Queue an event."""
        if not self._address:
            return
        encoded = encode(event)
        if encoded is None:
            return
        topic, message = encoded
        envelope = Envelope(
            timestamp=timestamp(time.time_ns()), namespace=self._namespace, topic=topic
        )
        envelope.event.type_url = message.DESCRIPTOR.full_name
        envelope.event.value = message.SerializeToString()
        if len(self._waiting) >= KEEP:
            lost = self._waiting.popleft()
            log.error("containerd is away: event %s is dropped, %d wait", lost.topic, KEEP)
        self._waiting.append(envelope)
        self._idle.clear()
        self._changed.set()

    async def close(self, drain_s: float = 2.0) -> None:
        """Deliver what waits for up to ``drain_s`` seconds, then end."""
        try:
            await asyncio.wait_for(self._idle.wait(), drain_s)
        except TimeoutError:
            log.error("containerd is away: %d events are not delivered", len(self._waiting))
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _deliver(self) -> None:
        client: Client | None = None
        failures = 0
        try:
            while True:
                if not self._waiting:
                    self._idle.set()
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                envelope = self._waiting[0]
                try:
                    if client is None or client.closed:
                        client = await Client.connect(self._address)
                    request = ForwardRequest(envelope=envelope)
                    await client.call(SERVICE, "Forward", request, Empty, timeout_s=_CALL_S)
                except ZeropodError as error:
                    if _passing(error):
                        if client is not None:
                            client.close()
                            client = None
                        if failures == 0:
                            log.warning("events wait for containerd: %s", error)
                        await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                        failures += 1
                        continue
                    log.error("containerd refused event %s: %s", envelope.topic, error)
                failures = 0
                if self._waiting and self._waiting[0] is envelope:  # else dropped meanwhile
                    self._waiting.popleft()
        finally:
            if client is not None:
                client.close()


def _passing(error: ZeropodError) -> bool:
    """Whether the same event may be taken a little later."""
    if isinstance(error, RemoteError):
        return error.status in _PASSING
    return isinstance(error, Unavailable | DeadlineExceeded)


@singledispatch
def encode(event: object) -> tuple[str, Message] | None:
    """Topic and message of an event; None for one that containerd is not told."""
    raise TypeError(f"no message for {event!r}")


@encode.register
def _(event: events.Created) -> tuple[str, Message]:
    io = event.stdio
    return "/tasks/create", pb.TaskCreate(
        container_id=event.id,
        bundle=event.bundle,
        rootfs=[
            Mount(type=m.type, source=m.source, target=m.target, options=m.options)
            for m in event.rootfs
        ],
        io=pb.TaskIO(stdin=io.stdin, stdout=io.stdout, stderr=io.stderr, terminal=io.terminal),
        checkpoint=event.checkpoint,
        pid=event.pid,
    )


@encode.register
def _(event: events.Started) -> tuple[str, Message]:
    return "/tasks/start", pb.TaskStart(container_id=event.id, pid=event.pid)


@encode.register
def _(event: events.ExecAdded) -> tuple[str, Message]:
    return "/tasks/exec-added", pb.TaskExecAdded(container_id=event.id, exec_id=event.exec_id)


@encode.register
def _(event: events.ExecStarted) -> tuple[str, Message]:
    return "/tasks/exec-started", pb.TaskExecStarted(
        container_id=event.id, exec_id=event.exec_id, pid=event.pid
    )


@encode.register
def _(event: events.Exited) -> tuple[str, Message]:
    return "/tasks/exit", pb.TaskExit(
        container_id=event.id,
        id=event.process_id,
        pid=event.pid,
        exit_status=event.exit.status,
        exited_at=timestamp(event.exit.at_ns),
    )


@encode.register
def _(event: events.Deleted) -> tuple[str, Message] | None:
    if event.process_id != event.id:
        return None
    return "/tasks/delete", pb.TaskDelete(
        container_id=event.id,
        pid=event.pid,
        exit_status=event.exit.status,
        exited_at=timestamp(event.exit.at_ns),
    )


@encode.register
def _(event: events.Paused) -> tuple[str, Message]:
    return "/tasks/paused", pb.TaskPaused(container_id=event.id)


@encode.register
def _(event: events.Resumed) -> tuple[str, Message]:
    return "/tasks/resumed", pb.TaskResumed(container_id=event.id)


@encode.register
def _(event: events.OutOfMemory) -> tuple[str, Message]:
    return "/tasks/oom", pb.TaskOOM(container_id=event.id)
