"""What a start says when the shim-to-be dies under the child that prepares it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from collections.abc import Iterator

import pytest

from zeropod.shim import main, process
from zeropod.shim.invocation import Channel


@pytest.fixture
def ended() -> Iterator[int]:
    """A process that has ended and that nobody has waited for."""
    child = subprocess.Popen(["true"])
    descriptor = os.pidfd_open(child.pid)
    assert select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)
    yield child.pid
    child.wait()


class _Fails(Channel):
    def __init__(self) -> None:
        self.answers: list[tuple[bytes, int]] = []

    def receive(self, _owner: int) -> main.Invocation:
        raise ProcessLookupError(3, "No such process")

    def answer(self, data: bytes, code: int = 0) -> None:
        self.answers.append((data, code))


def test_who_is_ending(ended: int) -> None:
    assert process.is_ending(ended)
    assert not process.is_ending(os.getpid())
    os.waitpid(ended, 0)
    assert process.is_ending(ended)


def test_a_failure_is_told(ended: int) -> None:
    """But not that of a shim-to-be which was killed: its start goes on elsewhere."""
    result, _ = socket.socketpair()
    channel = _Fails()
    assert main._prepare(channel, ended, result) == 1
    assert channel.answers == []
    assert main._prepare(channel, os.getpid(), result) == 1
    ((text, code),) = channel.answers
    assert text.endswith(b"ProcessLookupError: [Errno 3] No such process\n")
    assert code == 1
