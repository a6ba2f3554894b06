"""The asyncio server: one task per call, one status per failure.

A call that has begun is finished: neither its timeout nor the end of its connection cancels it,
because half a Create or Delete is worse than one whose answer nobody reads. The caller gets
DEADLINE_EXCEEDED in time. Peers of another user than root are refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from google.protobuf.message import DecodeError, Message

from zeropod.api.ttrpc_pb2 import Request, Response, Status
from zeropod.errors import Code, ZeropodError
from zeropod.ttrpc.frame import MAX_PAYLOAD, Decoder, Frame, FrameType
from zeropod.ttrpc.stream import Opened, Refused, Streams

log = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[Message]]
_NS: Final = 1_000_000_000
_MAX_TEXT: Final = 16 * 1024


class Method(NamedTuple):
    """The type of a method's request and what answers it."""

    request: type[Message]
    handler: Handler


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

    async def serve(self, listening: socket.socket) -> None:
        """Begin to accept. Takes the socket over."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listening)

    async def close(self, grace_s: float = 5.0) -> None:
        """Accept no more, let running calls answer for up to ``grace_s`` seconds, hang up."""
        if self._server is not None:
            self._server.close()
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=grace_s)
            for task in late:
                task.cancel()
        for connection in tuple(self._connections):
            connection.hang_up()

    def admit(self, connection: _Connection, peer_uid: int) -> bool:
        if peer_uid != self._uid:
            log.warning("refused a connection by uid %d", peer_uid)
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def begin(self, connection: _Connection, event: Opened) -> None:
        task = asyncio.ensure_future(self._call(connection, event))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(self, connection: _Connection, event: Opened) -> None:
        response = await self._respond(event)
        connection.answer(event.stream_id, response)

    async def _respond(self, event: Opened) -> Response:
        try:
            request = Request.FromString(event.payload)
        except DecodeError as error:
            return _failure(Code.INVALID_ARGUMENT, f"not a ttrpc request: {error}")
        method = self._services.get(request.service, {}).get(request.method)
        name = f"{request.service}/{request.method}"
        if method is None:
            return _failure(Code.UNIMPLEMENTED, f"method {name} is not implemented")
        if event.streaming:
            return _failure(Code.UNIMPLEMENTED, f"method {name} does not stream")
        try:
            argument = method.request.FromString(request.payload)
        except DecodeError as error:
            return _failure(Code.INVALID_ARGUMENT, f"{name}: not a valid message: {error}")
        work = asyncio.ensure_future(_outcome(name, method.handler, argument))
        timeout_s = request.timeout_nano / _NS if request.timeout_nano > 0 else None
        self._calls.add(work)  # type: ignore[arg-type]
        work.add_done_callback(self._calls.discard)  # type: ignore[arg-type]
        try:
            return await asyncio.wait_for(asyncio.shield(work), timeout_s)
        except TimeoutError:
            return _failure(Code.DEADLINE_EXCEEDED, f"{name} took longer than {timeout_s} s")


async def _outcome(name: str, handler: Handler, argument: Message) -> Response:
    try:
        payload = (await handler(argument)).SerializeToString()
    except ZeropodError as error:
        return _failure(error.code, str(error))
    except Exception as error:
        log.exception("%s failed", name)
        return _failure(Code.UNKNOWN, f"{name}: {type(error).__name__}: {error}")
    if len(payload) > MAX_PAYLOAD - 64:
        return _failure(Code.RESOURCE_EXHAUSTED, f"the answer of {name} is too long")
    return Response(status=Status(code=0), payload=payload)


def _failure(code: Code, text: str) -> Response:
    return Response(status=Status(code=int(code), message=text[:_MAX_TEXT]))


class _Connection(asyncio.Protocol):
    """One peer: decodes what comes, writes what is answered."""

    __slots__ = ("_decoder", "_server", "_streams", "_transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = Decoder()
        self._streams = Streams()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("socket")
        creds = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", creds)
        if self._server.admit(self, uid):
            self._transport = cast(asyncio.Transport, transport)
        else:
            cast(asyncio.Transport, transport).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        for frame in self._decoder.feed(data):
            event = self._streams.receive(frame)
            if isinstance(event, Opened):
                self._server.begin(self, event)
            elif isinstance(event, Refused):
                self._send(event.stream_id, _failure(event.code, event.message))

    def answer(self, stream_id: int, response: Response) -> None:
        if self._streams.answered(stream_id):
            self._send(stream_id, response)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _send(self, stream_id: int, response: Response) -> None:
        if self._transport is not None:
            frame = Frame(stream_id, FrameType.RESPONSE, 0, response.SerializeToString())
            self._transport.write(frame.encode())
