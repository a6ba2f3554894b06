"""More openers from the node than the activator holds at once."""

from __future__ import annotations

import resource
import selectors
import socket
from collections.abc import Iterator

import pytest

from tests.netns.conftest import POD_V4, PORT, Pod

MAX = 3072
"""ZP_MAX_CONNS of csrc/internal.h."""
LATE = MAX + 50
"""Waits in the kernel's queue, and speaks only when many others have come after him."""


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Up to four a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Clients that say their number and hear "bye", and an app that serves them."""

    def __init__(self, pod: Pod, size: int) -> None:
        self.pod = pod
        self.poll = selectors.DefaultSelector()
        self.clients = {number: pod.client.make_socket() for number in range(size)}
        self.held: list[socket.socket] = []
        self.served = 0
        self.answers = False
        for number, made in self.clients.items():
            made.setblocking(False)
            made.connect_ex((POD_V4, PORT))
            if number != LATE:
                self.poll.register(made, selectors.EVENT_WRITE, number)

    def late(self) -> None:
        self.poll.register(self.clients[LATE], selectors.EVENT_WRITE, LATE)

    def listen(self, listener: socket.socket) -> None:
        self.poll.register(listener, selectors.EVENT_READ, self._accept)

    def step(self) -> None:
        ready = self.poll.select(60)
        assert ready, f"{len(self.clients)} have no answer"
        for key, mask in ready:
            made = key.fileobj
            assert isinstance(made, socket.socket)
            if callable(key.data):
                key.data(made)
            elif mask & selectors.EVENT_WRITE:
                made.sendall(b"%06d" % key.data)
                self.poll.modify(made, selectors.EVENT_READ, key.data)
            else:
                assert made.recv(10) == b"bye"
                self.poll.unregister(made)
                self.clients.pop(key.data).close()

    def _accept(self, listener: socket.socket) -> None:
        app, _ = listener.accept()
        self.held.append(app)
        if self.answers:
            self.answer()

    def answer(self) -> None:
        """Serve all that the app has."""
        self.answers = True
        for app in self.held:
            with app:
                app.settimeout(60)
                assert app.recv(6, socket.MSG_WAITALL).isdigit()
                app.sendall(b"bye")
                self.served += 1
        self.held.clear()


@pytest.mark.parametrize("more", [500, 4000])
def test_all_are_served_and_none_is_reset(pod: Pod, more: int) -> None:
    group = pod.group(connect_timeout_ns=120_000_000_000)
    pod.activator.hold(group)
    crowd = Crowd(pod, MAX + more)
    while pod.activator.stats(group)["held"] < MAX:
        crowd.step()
    crowd.late()
    with pod.here.listen(PORT, backlog=4096) as listener:
        crowd.listen(listener)
        pod.activator.awake(group)
        while pod.activator.stats(group)["spliced"] < MAX:
            crowd.step()
        assert len(crowd.clients) == MAX + more
        crowd.answer()
        while crowd.clients:
            crowd.step()
    crowd.poll.close()
    assert crowd.served == MAX + more
    assert pod.activator.stats(group)["refused"] == 0
