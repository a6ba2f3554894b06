"""Thousands of idle connections, and an app that goes to sleep over them.

A dump ends them: CRIU restores none (`tcp-close`), and with the processes go their sockets, whose
end the kernel tells each client as that of any process (FIN). Nobody is left with a connection that
looks alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import selectors
import socket
from collections.abc import Iterator

import pytest

from lab import waiting
from tests.criu.conftest import Box, MakeBox
from zeropod.container.phase import Phase

_CONNECTIONS = 2000
_LIMIT_S = 60


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _each(made: list[socket.socket], event: int) -> Iterator[socket.socket]:
    """Each of them once, as it is ready."""
    with selectors.DefaultSelector() as poll:
        for one in made:
            poll.register(one, event)
        while poll.get_map():
            ready = poll.select(_LIMIT_S)
            assert ready, f"{len(poll.get_map())} of {len(made)} wait"
            for key, _ in ready:
                poll.unregister(key.fileobj)
                assert isinstance(key.fileobj, socket.socket)
                yield key.fileobj


def _ask(made: list[socket.socket]) -> list[tuple[str, int]]:
    """One line by each connection, which stays open."""
    for one in _each(made, selectors.EVENT_WRITE):
        one.sendall(b"?\n")
    answers = []
    for one in _each(made, selectors.EVENT_READ):
        boot, count = one.recv(4096).split()
        answers.append((boot.decode(), int(count)))
    return answers


def _open(box: Box, stack: contextlib.ExitStack, count: int) -> list[socket.socket]:
    return [stack.enter_context(box.connect()) for _ in range(count)]


@pytest.mark.parametrize("activation", ["park", "splice"])
@pytest.mark.parametrize("opened", ["awake", "asleep"])
async def test_they_are_ended_and_later_ones_are_served(
    make_box: MakeBox, activation: str, opened: str
) -> None:
    """Those that were opened asleep have woken the app; spliced ones end with it all the same."""
    box = await make_box(app="keeper.py", activation=activation, scaledown_duration="2s")
    with contextlib.ExitStack() as stack:
        first = _open(box, stack, 1)
        ((boot, count),) = await asyncio.to_thread(_ask, first)
        if opened == "asleep":
            await box.asleep()
        idle = _open(box, stack, _CONNECTIONS)
        answers = await asyncio.to_thread(_ask, idle)
        assert sorted(answers) == [(boot, count + n + 1) for n in range(_CONNECTIONS)]
        wakes = box.scaler.history.checkpoints.count
        while box.scaler.history.checkpoints.count == wakes:
            await box.scaler._next()
        met = await asyncio.to_thread(_ends, idle)
        print(f"of {len(idle)}: {met.count('FIN')} ended, {met.count('RST')} were reset")
        assert len(met) == _CONNECTIONS
        await asyncio.to_thread(_is_reset, idle[0])
        assert box.scaler.phase is Phase.ASLEEP, "woken by what belongs to nothing"
        again = _open(box, stack, 100)
        answers = await asyncio.to_thread(_ask, again)
        count += _CONNECTIONS
        assert sorted(answers) == [(boot, count + n + 1) for n in range(100)]
        assert box.scaler.history.checkpoints.errors == 0


def _ends(made: list[socket.socket]) -> list[str]:
    """What becomes of each, without a word of its client."""
    met = []
    for one in _each(made, selectors.EVENT_READ):
        try:
            assert one.recv(1) == b""
            met.append("FIN")
        except ConnectionResetError:
            met.append("RST")
    return met


def _is_reset(made: socket.socket) -> None:
    """Whoever goes on all the same is reset, as by any process that has ended."""

    def told() -> bool:
        try:
            made.send(b"?\n")
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    waiting.until("the reset", told, _LIMIT_S)
