"""A spliced connection in each of its states (csrc/internal.h), and what may happen to it there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lab import waiting
from tests.netns.conftest import POD_V4, PORT, Pod, reset
from tests.netns.test_refused import ELSEWHERE, connecting
from tests.netns.test_wake import PROBE, read_all
from zeropod._fastpath._activator import EventKind

SHORT_NS = 2_000_000_000


def activators_end(client: tuple[str, int]) -> socket.socket | None:
    """Another descriptor of the socket that the activator has accepted from this address."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # the listing's own; what is no connection
            if not entry.is_socket():
                continue
            found = socket.socket(fileno=os.dup(int(entry.name)))
            with suppress(OSError):
                if found.getpeername()[:2] == (f"::ffff:{client[0]}", client[1]):
                    return found
            found.close()
    return None


@pytest.fixture
def pod(node_pod: Pod) -> Pod:
    """Probes come from the node."""
    return node_pod


class Life:
    """A client's connection. ``app``: the other end, from the moment on that there is one."""

    def __init__(self, pod: Pod, stack: ExitStack, **options: int) -> None:
        self.pod = pod
        self.stack = stack
        self.group = pod.group(**options)
        pod.activator.hold(self.group)
        self.made = stack.enter_context(pod.client.connect(POD_V4))
        self.name = self.made.getsockname()
        self.said = b""
        self.half_closed = False
        self.app: socket.socket | None = None

    def say(self, what: bytes) -> None:
        self.made.sendall(what)
        self.said += what

    def accept(self) -> socket.socket:
        """The app is there and takes it."""
        if self.app is None:
            listener = self.stack.enter_context(self.pod.here.listen(PORT, host=POD_V4))
            self.pod.here.run("ip", "link", "set", "lo", "up")
            self.pod.activator.awake(self.group)
            self.app = self.stack.enter_context(listener.accept()[0])
            self.app.settimeout(60)
        return self.app

    def hear(self, count: int) -> bytes:
        """So many bytes at the app's end, fewer at the end of file."""
        heard = b""
        while len(heard) < count and (piece := self.accept().recv(count - len(heard))):
            heard += piece
        return heard


# -- states --------------------------------------------------------------------------------------


def probing(life: Life) -> None:
    life.say(b"GET / HT")


def draining(life: Life) -> None:
    life.made.sendall(PROBE)
    assert read_all(life.made).startswith(b"HTTP/1.1 204")


def held(life: Life) -> None:
    life.say(b"hello")
    life.pod.wait(EventKind.PENDING)


def connect_under_way(life: Life) -> None:
    """Until lo is up again: what goes to the pod's own address goes over it."""
    held(life)
    life.stack.enter_context(life.pod.here.listen(PORT, host=ELSEWHERE))
    life.pod.here.run("ip", "link", "set", "lo", "down")
    life.pod.activator.awake(life.group)
    life.pod.wait(EventKind.READY)
    assert connecting(life.pod)


def splicing(life: Life) -> None:
    held(life)
    assert life.hear(5) == b"hello"
    life.said = b""


# -- what happens --------------------------------------------------------------------------------


def more_bytes(life: Life) -> None:
    life.say(b"and more")


def end_of_file(life: Life) -> None:
    life.made.shutdown(socket.SHUT_WR)
    life.half_closed = True


def client_resets(life: Life) -> None:
    reset(life.made)


def app_resets(life: Life) -> None:
    reset(life.accept())


def app_has_ended(life: Life) -> None:
    life.pod.activator.drop(life.group)


def time_passes(life: Life) -> None:
    if life.app is None and not connecting(life.pod):
        life.pod.activator.awake(life.group)  # and nobody listens


# -- what comes of it ----------------------------------------------------------------------------


def is_served(life: Life) -> None:
    assert life.hear(len(life.said)) == life.said
    app = life.accept()
    if life.half_closed:
        assert app.recv(1) == b""
    app.sendall(b"bye")
    app.close()
    assert read_all(life.made) == b"bye"
    life.made.close()
    is_gone(life)


def is_gone(life: Life) -> None:
    def gone() -> bool:
        if (end := activators_end(life.name)) is not None:
            end.close()
        return end is None

    waiting.until("its end", gone)  # a socket that was reset has no name any more
    waiting.until("nobody", lambda: life.pod.activator.stats(life.group)["held"] == 0)


def is_thrown_away(life: Life) -> None:
    life.made.close()
    is_gone(life)
    assert life.pod.activator.stats(life.group)["connections"] == 0


def client_is_reset(life: Life) -> None:
    with pytest.raises(ConnectionResetError):
        life.made.recv(1)
    is_gone(life)


def app_is_reset(life: Life) -> None:
    with pytest.raises(ConnectionResetError):
        life.hear(1000)
    is_gone(life)


def both_are_reset(life: Life) -> None:
    client_is_reset(life)
    app_is_reset(life)


@pytest.mark.parametrize(
    ("state", "event", "outcome"),
    [
        (probing, more_bytes, is_served),
        (probing, end_of_file, is_served),
        (probing, client_resets, is_gone),
        (probing, app_has_ended, client_is_reset),
        (draining, more_bytes, is_thrown_away),
        (draining, end_of_file, is_gone),
        (draining, client_resets, is_gone),
        (draining, app_has_ended, is_gone),
        (draining, time_passes, is_gone),
        (held, more_bytes, is_served),
        (held, end_of_file, is_served),
        (held, client_resets, is_gone),
        (held, app_has_ended, client_is_reset),
        (held, time_passes, client_is_reset),
        (connect_under_way, more_bytes, is_served),
        (connect_under_way, end_of_file, is_served),
        (connect_under_way, client_resets, app_is_reset),
        (connect_under_way, app_has_ended, client_is_reset),
        (connect_under_way, time_passes, client_is_reset),
        (splicing, more_bytes, is_served),
        (splicing, end_of_file, is_served),
        (splicing, client_resets, app_is_reset),
        (splicing, app_resets, client_is_reset),
        (splicing, app_has_ended, is_served),  # what is left of the app decides
        (splicing, time_passes, both_are_reset),
    ],
    ids=lambda step: step.__name__,
)
def test_what_comes_of_it(
    pod: Pod,
    state: Callable[[Life], None],
    event: Callable[[Life], None],
    outcome: Callable[[Life], None],
) -> None:
    options = {}
    if event is time_passes:
        options = {"connect_timeout_ns": SHORT_NS, "proxy_timeout_ns": SHORT_NS}
    with ExitStack() as stack:
        life = Life(pod, stack, **options)
        state(life)
        event(life)
        outcome(life)


def test_half_a_request_is_a_users_after_a_while(pod: Pod) -> None:
    with ExitStack() as stack:
        life = Life(pod, stack)
        probing(life)
        pod.wait(EventKind.PENDING)
        is_served(life)


def test_a_client_that_has_vanished_is_noticed(pod: Pod) -> None:
    """Nothing is cut because nothing is said: his keepalives go unanswered."""
    with ExitStack() as stack:
        life = Life(pod, stack)
        splicing(life)
        end = activators_end(life.name)
        assert end is not None
        with end:
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            found = [end.getsockopt(socket.IPPROTO_TCP, option) for option in options]
            assert found == [60, 15, 4]
            for option in options:  # no test waits for two minutes
                end.setsockopt(socket.IPPROTO_TCP, option, 1)
        pod.client.run("ip", "link", "set", "veth0", "down")
        app_is_reset(life)
