"""Somebody who opens a connection in the pod's network, and what becomes of him."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType

from lab import waiting
from tests.criu.conftest import Box

_LIMIT_S = 60
ENDED = (ConnectionRefusedError, ConnectionResetError)


class Opener:
    """Asks as soon as he is connected; whoever is spliced is so at once."""

    def __init__(self, box: Box, host: str = "127.0.0.1") -> None:
        self._box = box
        self._before = box.waiting()
        self.socket = box.connect(host)

    def arrives(self) -> None:
        """Returns when the activator has him: parked, or held. Blocks the event loop."""
        waiting.until("one who waits", lambda: self._box.waiting() > self._before, _LIMIT_S)

    async def answer(self) -> tuple[str, int]:
        """(boot id, count). Raises one of `ENDED`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_LIMIT_S):
            await self._writable()
            if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "connect")
            await loop.sock_sendall(self.socket, b"?\n")
            answer = b""
            while data := await loop.sock_recv(self.socket, 4096):
                answer += data
        if not answer:
            raise ConnectionResetError("closed without an answer")
        boot, count = answer.split()
        return boot.decode(), int(count)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self.socket, lambda: ready.done() or ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_writer(self.socket)

    def reset(self) -> None:
        """Be gone at once."""
        option = struct.pack("ii", 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        self.socket.close()

    def __enter__(self) -> Opener:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()
