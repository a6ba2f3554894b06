"""An HTTP client that does nothing but take the time: from connect() to the first byte."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Protocol

from lab import waiting

_TIMEOUT_S = 30.0
_REQUEST = "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n"
_USER = "benchmark"
PROBE = "kube-probe/1.33"
"""The User-Agent of a kubelet's HTTP probe."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Times are CLOCK_MONOTONIC nanoseconds: connect() called, first byte read."""

    begin_ns: int
    first_byte_ns: int
    body: bytes

    @property
    def took_ns(self) -> int:
        return self.first_byte_ns - self.begin_ns

    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    def words(self) -> list[str]:
        return self.body.decode().split()


class Origin(Protocol):
    """Where a request comes from: the node, or a pod."""

    def tcp_socket(self) -> socket.socket: ...


def get(
    origin: Origin, address: str, port: int, *, agent: str = _USER, status: int = 200
) -> Answer:
    """One request to a pod's IPv4 address, over a connection of its own.

    Raises:
        OSError: the connection failed.
        ValueError: the reply's status is another.
    """
    request = _REQUEST.format(host=address, agent=agent).encode()
    with origin.tcp_socket() as connection:
        connection.settimeout(_TIMEOUT_S)
        begin_ns = time.monotonic_ns()
        connection.connect((address, port))
        connection.sendall(request)
        reply = connection.recv(65536)
        first_byte_ns = time.monotonic_ns()
        while part := connection.recv(65536):
            reply += part
    head, _, body = reply.partition(b"\r\n\r\n")
    line = head.partition(b"\r\n")[0]
    if f" {status} ".encode() not in line:
        raise ValueError(f"{address}:{port} answered {line.decode(errors='replace')!r}")
    return Answer(begin_ns, first_byte_ns, body)


def first_answer(origin: Origin, address: str, port: int) -> Answer:
    """The first request that an app answers which is starting: asked again every millisecond."""

    def ask() -> Answer | None:
        try:
            return get(origin, address, port)
        except ConnectionRefusedError:
            return None

    return waiting.until(f"answer of {address}:{port}", ask, _TIMEOUT_S, interval=0.001)
