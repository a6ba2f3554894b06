"""The asyncio client: calls with one answer or a stream of them, many at once on one connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Final, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from zeropod.api.ttrpc_pb2 import Request, Response, Status
from zeropod.errors import Code, DeadlineExceeded, InvalidArgument, Unavailable, ZeropodError
from zeropod.ttrpc.frame import Decoder, Flag, Frame, FrameType, Oversized

_M = TypeVar("_M", bound=Message)
_NS: Final = 1_000_000_000
_MAX_STREAM_ID: Final = 2**32 - 1


class RemoteError(ZeropodError):
    """The peer's answer was an error: ``status`` is its code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client(asyncio.Protocol):
    """A connection to a ttrpc server. Made by `connect`, ended by `close`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._streams: dict[int, asyncio.Queue[bytes | Response | Unavailable | None]] = {}
        self._next = 1

    @classmethod
    async def connect(cls, target: str | socket.socket) -> Client:
        """Connect to the path of a unix socket, or take a connected socket over.

        Raises:
            Unavailable: nobody listens there.
        """
        loop = asyncio.get_running_loop()
        try:
            if isinstance(target, str):
                _, client = await loop.create_unix_connection(cls, target)
            else:
                _, client = await loop.create_unix_connection(cls, sock=target)
        except OSError as error:
            raise Unavailable(f"connect {target}: {error.strerror}") from error
        return client

    @property
    def closed(self) -> bool:
        return self._transport is None

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[_M],
        *,
        timeout_s: float | None = None,
    ) -> _M:
        """Call and wait for the answer.

        Raises:
            InvalidArgument: the request is too long for a frame.
            RemoteError: the peer answered with an error, or with what is no answer (INTERNAL).
            DeadlineExceeded: no answer within ``timeout_s`` seconds.
            Unavailable: the connection is gone; whether the call had its effect is not known.
        """
        name = f"{service}/{method}"
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        stream_id = self._begin(service, method, request, 0, timeout_s)
        self._waiting[stream_id] = answer
        try:
            response = await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"{name}: no answer within {timeout_s} s") from None
        finally:
            self._waiting.pop(stream_id, None)
        if response.status.code != Code.OK:
            raise RemoteError(response.status.code, response.status.message)
        return _decoded(name, response_type, response.payload)

    async def stream(
        self, service: str, method: str, request: Message, response_type: type[_M]
    ) -> AsyncIterator[_M]:
        """Call and give the messages of the answer as they come, until the peer ends it.

        Raises:
            RemoteError, Unavailable: as `call`.
        """
        name = f"{service}/{method}"
        queue: asyncio.Queue[bytes | Response | Unavailable | None] = asyncio.Queue()
        stream_id = self._begin(service, method, request, Flag.REMOTE_CLOSED, None)
        self._streams[stream_id] = queue
        try:
            while (found := await queue.get()) is not None:
                if isinstance(found, Unavailable):
                    raise found
                if isinstance(found, Response):
                    raise RemoteError(found.status.code, found.status.message)
                yield _decoded(name, response_type, found)
        finally:
            self._streams.pop(stream_id, None)

    def _begin(
        self, service: str, method: str, request: Message, flags: int, timeout_s: float | None
    ) -> int:
        """Send a request. Returns the id of its stream."""
        name = f"{service}/{method}"
        if self._transport is None or self._next > _MAX_STREAM_ID:
            raise Unavailable(f"{name}: the connection is closed")
        envelope = Request(service=service, method=method, payload=request.SerializeToString())
        if timeout_s is not None:
            envelope.timeout_nano = int(timeout_s * _NS)
        payload = envelope.SerializeToString()
        try:
            frame = Frame(self._next, FrameType.REQUEST, flags, payload).encode()
        except ValueError as error:
            raise InvalidArgument(f"{name}: {error}") from error
        stream_id, self._next = self._next, self._next + 2
        self._transport.write(frame)
        return stream_id

    def close(self) -> None:
        """Hang up; calls under way get Unavailable. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no such class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail("the connection was closed by the peer")

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if (queue := self._streams.get(frame.stream_id)) is not None:
                queue.put_nowait(_step(frame))
                continue
            waiting = self._waiting.get(frame.stream_id)
            if waiting is None or waiting.done():
                continue
            if isinstance(frame, Oversized) or frame.type == FrameType.RESPONSE:
                waiting.set_result(_response(frame))

    def _fail(self, why: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable(why))
        for queue in self._streams.values():
            queue.put_nowait(Unavailable(why))


def _decoded(name: str, response_type: type[_M], payload: bytes) -> _M:
    try:
        return response_type.FromString(payload)
    except DecodeError as error:
        raise RemoteError(Code.INTERNAL, f"{name}: not a valid answer: {error}") from error


def _step(frame: Frame | Oversized) -> bytes | Response | None:
    """What a frame is to the reader of a stream: a message, how it failed, its end."""
    if isinstance(frame, Oversized) or frame.type == FrameType.RESPONSE:
        return _response(frame)
    return None if frame.flags & Flag.REMOTE_CLOSED else frame.payload


def _response(frame: Frame | Oversized) -> Response:
    if isinstance(frame, Oversized):
        text = f"an answer of {frame.length} bytes is too long"
        return Response(status=Status(code=Code.RESOURCE_EXHAUSTED, message=text))
    try:
        return Response.FromString(frame.payload)
    except DecodeError as error:
        text = f"not a ttrpc response: {error}"
        return Response(status=Status(code=Code.INTERNAL, message=text))
