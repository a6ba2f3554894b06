"""The asyncio server: one task per call, one status per failure.

A call that has begun is finished: neither its timeout nor the end of its connection cancels it,
because half a Create or Delete is worse than one whose answer nobody reads. The caller gets
DEADLINE_EXCEEDED in time. Only a `Method.waits` call, which changes nothing, ends with its timeout,
its connection or the server: a containerd that comes and goes would else leave a heap of them.

Bounded: connections, calls of each (stream.py), bytes of all requests under way, bytes of answers
that a peer does not read. Peers of another user than root are refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from google.protobuf.message import DecodeError, Message

from zeropod.api.ttrpc_pb2 import Request, Response, Status
from zeropod.errors import Code, ZeropodError
from zeropod.ttrpc.frame import MAX_PAYLOAD, Decoder, Flag, Frame, FrameType
from zeropod.ttrpc.stream import Opened, Refused, Streams

log = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[Message]]
StreamHandler = Callable[[Any], AsyncIterator[Message]]

MAX_CONNECTIONS: Final = 64
MAX_UNDER_WAY: Final = 4 * MAX_PAYLOAD
MAX_UNREAD: Final = 2 * MAX_PAYLOAD
_NS: Final = 1_000_000_000
_MAX_TEXT: Final = 16 * 1024
_UCRED: Final = struct.Struct("3i")


class Method(NamedTuple):
    """The type of a method's request and what answers it: once, or with a ``stream`` of messages.

    ``waits``: it only waits for something, and ending it early loses nothing. ``untold`` takes the
    request and the answer that came too late for its caller.
    """

    request: type[Message]
    handler: Handler | None = None
    waits: bool = False
    stream: StreamHandler | None = None
    untold: Callable[[Any, bytes], None] | None = None


class _Call(NamedTuple):
    """A request that was understood. ``timeout_s`` is 0 without one."""

    name: str
    method: Method
    argument: Message
    timeout_s: float


class Server:
    """Serves methods on a listening unix socket.

    Args:
        services: service name → method name → `Method`.
        uid: the only peer user that is served.
    """

    def __init__(
        self, services: Mapping[str, Mapping[str, Method]], *, uid: int | None = None
    ) -> None:
        self._services = services
        self._uid = os.geteuid() if uid is None else uid
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[_Connection] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._under_way = 0

    async def serve(self, listening: socket.socket) -> None:
        """Begin to accept. Takes the socket over."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listening)

    async def close(self, grace_s: float = 5.0) -> None:
        """Accept no more, let running calls answer for up to ``grace_s`` seconds, hang up."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel_waits()
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=grace_s)
            for task in late:
                log.error("%s is cut off: it did not end within %g s", task.get_name(), grace_s)
                task.cancel()
            if late:
                await asyncio.wait(late)
        for connection in tuple(self._connections):
            connection.hang_up()

    def admit(self, connection: _Connection, peer_uid: int) -> bool:
        """Whether this peer is served."""
        if peer_uid != self._uid:
            log.warning("refused a connection by uid %d", peer_uid)
            return False
        if len(self._connections) >= MAX_CONNECTIONS:
            log.warning("refused a connection: there are %d already", MAX_CONNECTIONS)
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def begin(self, connection: _Connection, event: Opened) -> None:
        """Understand a request and have it worked on, or answer why not."""
        call = self._understand(event)
        if isinstance(call, Response):
            connection.answer(event.stream_id, call)
            return
        work = self._work(connection, event.stream_id, call, len(event.payload))
        task = asyncio.get_running_loop().create_task(work, name=call.name)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        if call.method.waits:
            connection.waits.add(task)
            task.add_done_callback(connection.waits.discard)

    def _understand(self, event: Opened) -> _Call | Response:
        if self._under_way + len(event.payload) > MAX_UNDER_WAY:
            text = f"requests of more than {MAX_UNDER_WAY} bytes are under way"
            return _failure(Code.RESOURCE_EXHAUSTED, text)
        try:
            request = Request.FromString(event.payload)
        except DecodeError as error:
            return _failure(Code.INVALID_ARGUMENT, f"not a ttrpc request: {error}")
        method = self._services.get(request.service, {}).get(request.method)
        name = f"{request.service}/{request.method}"
        if method is None:
            return _failure(Code.UNIMPLEMENTED, f"method {name} is not implemented")
        if event.streaming:
            return _failure(Code.UNIMPLEMENTED, f"method {name} takes no stream")
        try:
            argument = method.request.FromString(request.payload)
        except DecodeError as error:
            return _failure(Code.INVALID_ARGUMENT, f"{name}: not a valid message: {error}")
        return _Call(name, method, argument, max(request.timeout_nano, 0) / _NS)

    async def _work(self, connection: _Connection, stream_id: int, call: _Call, size: int) -> None:
        self._under_way += size
        alarm: asyncio.TimerHandle | None = None
        if call.timeout_s:
            task = asyncio.current_task() if call.method.waits else None
            alarm = asyncio.get_running_loop().call_later(
                call.timeout_s, _expire, connection, stream_id, call, task
            )
        try:
            response = await _outcome(call, connection, stream_id)
        except asyncio.CancelledError:
            if call.method.waits:
                raise  # a closed connection says it better than an answer would
            response = _failure(Code.CANCELLED, f"{call.name} was cut off")
        finally:
            self._under_way -= size
            if alarm is not None:
                alarm.cancel()
        if response is None:
            connection.end_stream(stream_id)
            return
        told = connection.answer(stream_id, response)
        if not told and call.method.untold is not None and not response.status.code:
            call.method.untold(call.argument, response.payload)


def _expire(
    connection: _Connection, stream_id: int, call: _Call, task: asyncio.Task[None] | None
) -> None:
    """Answer in time. What the call still answers later is not sent: the stream has ended."""
    text = f"{call.name} took longer than {call.timeout_s:g} s"
    connection.answer(stream_id, _failure(Code.DEADLINE_EXCEEDED, text))
    if task is not None:
        task.cancel()


async def _outcome(call: _Call, connection: _Connection, stream_id: int) -> Response | None:
    """The answer; None where all was said in messages of the stream."""
    try:
        if call.method.stream is not None:
            async for message in call.method.stream(call.argument):
                connection.send_message(stream_id, message)
            return None
        assert call.method.handler is not None
        payload = (await call.method.handler(call.argument)).SerializeToString()
    except ZeropodError as error:
        return _failure(error.code, str(error))
    except Exception as error:
        log.exception("%s failed", call.name)
        return _failure(Code.UNKNOWN, f"{call.name}: {type(error).__name__}: {error}")
    if len(payload) > MAX_PAYLOAD - 64:
        return _failure(Code.RESOURCE_EXHAUSTED, f"the answer of {call.name} is too long")
    return Response(status=Status(code=0), payload=payload)


def _failure(code: Code, text: str) -> Response:
    return Response(status=Status(code=int(code), message=text[:_MAX_TEXT]))


class _Connection(asyncio.Protocol):
    """One peer: decodes what comes, writes what is answered."""

    __slots__ = ("_decoder", "_server", "_streams", "_transport", "waits")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = Decoder()
        self._streams = Streams()
        self._transport: asyncio.Transport | None = None
        self.waits: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("socket")
        creds = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(creds)
        if self._server.admit(self, uid):
            # uvloop's transports are of no class of asyncio's.
            self._transport = cast("asyncio.Transport", transport)
        else:
            cast("asyncio.Transport", transport).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.forget(self)
        self.cancel_waits()

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if self._transport is None:
                return
            event = self._streams.receive(frame)
            if isinstance(event, Opened):
                self._server.begin(self, event)
            elif isinstance(event, Refused):
                self._send(event.stream_id, _failure(event.code, event.message))

    def answer(self, stream_id: int, response: Response) -> bool:
        """Send the answer of a stream, if it has not had one and the peer is there. False: not."""
        if not self._streams.answered(stream_id) or self._transport is None:
            return False
        self._send(stream_id, response)
        return True

    def send_message(self, stream_id: int, message: Message) -> None:
        """Send one of many, if the stream has not ended."""
        if self._streams.state(stream_id) is not None:
            payload = message.SerializeToString()
            self._write(Frame(stream_id, FrameType.DATA, 0, payload))

    def end_stream(self, stream_id: int) -> None:
        """There are no more messages."""
        if self._streams.answered(stream_id):
            flags = Flag.REMOTE_CLOSED | Flag.NO_DATA
            self._write(Frame(stream_id, FrameType.DATA, flags, b""))

    def cancel_waits(self) -> None:
        """End the calls that only wait."""
        for task in self.waits:
            task.cancel()

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _send(self, stream_id: int, response: Response) -> None:
        self._write(Frame(stream_id, FrameType.RESPONSE, 0, response.SerializeToString()))

    def _write(self, frame: Frame) -> None:
        if self._transport is None:
            return
        self._transport.write(frame.encode())
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            log.warning("hung up on a peer that reads no answers")
            self._transport.abort()
            self._transport = None
