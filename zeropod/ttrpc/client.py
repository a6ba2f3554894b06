"""The asyncio client: unary calls, many at once on one connection."""

from __future__ import annotations

import asyncio
import socket
from typing import Final, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from zeropod.api.ttrpc_pb2 import Request, Response
from zeropod.errors import Code, DeadlineExceeded, InvalidArgument, Unavailable, ZeropodError
from zeropod.ttrpc.frame import Decoder, Frame, FrameType, Oversized

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
        if self._transport is None or self._next > _MAX_STREAM_ID:
            raise Unavailable(f"{name}: the connection is closed")
        envelope = Request(service=service, method=method, payload=request.SerializeToString())
        if timeout_s is not None:
            envelope.timeout_nano = int(timeout_s * _NS)
        try:
            frame = Frame(self._next, FrameType.REQUEST, 0, envelope.SerializeToString()).encode()
        except ValueError as error:
            raise InvalidArgument(f"{name}: {error}") from error
        stream_id, self._next = self._next, self._next + 2
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[stream_id] = answer
        self._transport.write(frame)
        try:
            response = await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"{name}: no answer within {timeout_s} s") from None
        finally:
            self._waiting.pop(stream_id, None)
        if response.status.code != Code.OK:
            raise RemoteError(response.status.code, response.status.message)
        try:
            return response_type.FromString(response.payload)
        except DecodeError as error:
            raise RemoteError(Code.INTERNAL, f"{name}: not a valid answer: {error}") from error

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
            waiting = self._waiting.get(frame.stream_id)
            if waiting is None or waiting.done():
                continue
            if isinstance(frame, Oversized):
                text = f"an answer of {frame.length} bytes is too long"
                waiting.set_exception(RemoteError(Code.RESOURCE_EXHAUSTED, text))
            elif frame.type == FrameType.RESPONSE:
                try:
                    waiting.set_result(Response.FromString(frame.payload))
                except DecodeError as error:
                    text = f"not a ttrpc response: {error}"
                    waiting.set_exception(RemoteError(Code.INTERNAL, text))

    def _fail(self, why: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable(why))
