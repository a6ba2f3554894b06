"""Which ports an app has, and when that is known."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from zeropod.activator import ports

_LIMIT_S = 30

# Opens a port when it gets a line, says its number, and goes on until its stdin ends.
_APP = """
import socket, sys
kept = []
for line in sys.stdin:
    kept.append(socket.create_server(("", 0)))
    print(kept[-1].getsockname()[1], flush=True)
"""


class App:
    """A process whose ports are opened one by one, by a child of the one that is known."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def open(self) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def _running() -> Iterator[App]:
    argv = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-ISc", _APP]
    with subprocess.Popen(argv, stdin=-1, stdout=-1, text=True) as process:
        yield App(process)


@pytest.fixture
def app() -> Iterator[App]:
    with _running() as made:
        yield made


async def test_they_are_found_once_the_app_listens(app: App) -> None:
    looking = asyncio.create_task(ports.detect(app.pid))
    await asyncio.wait([looking], timeout=1)
    assert not looking.done()
    opened = app.open()
    assert await asyncio.wait_for(looking, _LIMIT_S) == {opened}


async def test_all_of_them_are_found(app: App) -> None:
    opened = {app.open() for _ in range(5)}
    assert await asyncio.wait_for(ports.detect(app.pid), _LIMIT_S) == opened


async def test_declared_ones_count_when_the_app_listens_on_one(app: App) -> None:
    """Not before, and neither another port of the app nor somebody else's listener counts."""
    with socket.create_server(("", 0)) as other:
        app.open()
        port = other.getsockname()[1]
        looking = asyncio.create_task(ports.detect(app.pid, ports.Declared(frozenset({port}))))
        await asyncio.wait([looking], timeout=1)
        assert not looking.done()
        looking.cancel()
        wanted = frozenset({port, app.open()})
        declared = ports.Declared(wanted)
        assert await asyncio.wait_for(ports.detect(app.pid, declared), _LIMIT_S) == wanted


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_declared_port_of_udp_counts_when_the_app_is_bound_to_it(
    app: App, family: socket.AddressFamily
) -> None:
    """Its TCP ports do not, where none is declared."""
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        app.open()
        port = other.getsockname()[1]
        declared = ports.Declared(udp=frozenset({port}))
        looking = asyncio.create_task(ports.detect(app.pid, declared))
        await asyncio.wait([looking], timeout=1)
        assert not looking.done()
        looking.cancel()
        assert await asyncio.wait_for(ports.detect(os.getpid(), declared), _LIMIT_S) == frozenset()


def test_what_is_waited_for_has_words() -> None:
    assert ports.why_unknown(ports.NOTHING) == "it listens on no TCP port"
    text = "it listens on none of the ports that ports-map gives it: 80, 443, 53/udp"
    assert ports.why_unknown(ports.Declared(frozenset({443, 80}), frozenset({53}))) == text
