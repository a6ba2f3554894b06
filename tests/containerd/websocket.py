"""RFC 6455 by hand, for both ends: messages of text, and the closing handshake.

Run as a program it is an app on port 8080. A plain request is answered with {boot_id, count}. Over
a websocket it says twice a second how long that has been open, and answers each message with a
count.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import socket
import socketserver
import struct
import threading
import time
from typing import IO

TEXT, CLOSE = 1, 8
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TICK_S = 0.5
BOOT_ID = secrets.token_hex(8)


def accept_key(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


def read(stream: IO[bytes]) -> tuple[int, bytes]:
    """Opcode and payload of a frame; (CLOSE, b"") at the end of the stream."""
    head = stream.read(2)
    if len(head) < 2:
        return CLOSE, b""
    size = head[1] & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", stream.read(2))
    mask = stream.read(4) if head[1] & 0x80 else bytes(4)
    payload = stream.read(size)
    return head[0] & 0x0F, bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def write(made: socket.socket, opcode: int, payload: bytes, *, masked: bool) -> None:
    """One frame, of up to 64 KiB. A client masks, a server does not."""
    size = len(payload)
    head = bytes([0x80 | opcode])
    flag = 0x80 if masked else 0
    head += bytes([flag | size]) if size < 126 else struct.pack("!BH", flag | 126, size)
    if masked:
        mask = os.urandom(4)
        payload = mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    made.sendall(head + payload)


def upgrade(made: socket.socket, stream: IO[bytes], host: str) -> None:
    """The client's part of the opening handshake."""
    key = base64.b64encode(os.urandom(16))
    made.sendall(
        b"GET /ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % (host.encode(), key)
    )
    assert stream.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
    assert _headers(stream)[b"sec-websocket-accept"] == accept_key(key)


def _headers(stream: IO[bytes]) -> dict[bytes, bytes]:
    found = {}
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        found[name.lower()] = value.strip()
    return found


class _Handler(socketserver.StreamRequestHandler):
    count = 0
    lock = threading.Lock()

    def handle(self) -> None:
        self.rfile.readline()
        key = _headers(self.rfile).get(b"sec-websocket-key")
        if key is None:
            body = json.dumps({"boot_id": BOOT_ID, "count": self._next()}).encode()
            self.request.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            return
        self.request.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept_key(key)
        )
        over = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(over,))
        ticker.start()
        while (frame := read(self.rfile))[0] == TEXT:
            self._say({"echo": int(frame[1]), "count": self._next()})
        over.set()
        ticker.join()
        write(self.request, CLOSE, frame[1], masked=False)

    def _tick(self, over: threading.Event) -> None:
        began, tick = time.monotonic(), 0
        while not over.wait(_TICK_S):
            self._say({"tick": tick, "open_s": time.monotonic() - began, "boot_id": BOOT_ID})
            tick += 1

    def _say(self, what: dict[str, object]) -> None:
        with self.lock:
            write(self.request, TEXT, json.dumps(what).encode(), masked=False)

    def _next(self) -> int:
        with self.lock:
            _Handler.count += 1
            return _Handler.count


class _Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    _Server(("::", 8080), _Handler).serve_forever(3600)
