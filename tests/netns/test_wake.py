"""A connection to a sleeping app wakes it and is served whole, whichever way it comes."""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import statistics
import time
from collections.abc import Callable

import pytest

from tests.netns.conftest import CLIENT_V4, CLIENT_V6, POD_V4, POD_V6, PORT, Pod
from zeropod._fastpath._activator import Activation, EventKind


@pytest.fixture(params=[Activation.PARK, Activation.SPLICE], ids=["park", "splice"])
def activation(request: pytest.FixtureRequest) -> Activation:
    return request.param


REQUEST = b"GET / HTTP/1.1\r\nHost: app\r\nUser-Agent: curl\r\n\r\n"
PROBE = b"GET /healthz HTTP/1.1\r\nHost: app\r\nUser-Agent: kube-probe/1.31\r\n\r\n"


def read_all(made: socket.socket) -> bytes:
    pieces = []
    while piece := made.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def ask(made: socket.socket, request: bytes = REQUEST) -> bytes:
    with made:
        made.sendall(request)
        return read_all(made)


@pytest.mark.parametrize("force_clsact", [False, True], ids=["tcx", "clsact"])
@pytest.mark.parametrize(
    ("inside", "host", "seen"),
    [
        (False, POD_V4, f"::ffff:{CLIENT_V4}"),
        (False, POD_V6, CLIENT_V6),
        (True, "127.0.0.1", "::ffff:127.0.0.1"),
        (True, "::1", "::1"),
        (True, POD_V4, f"::ffff:{POD_V4}"),
        (True, POD_V6, POD_V6),
    ],
)
def test_wakes_from_everywhere(
    make_pod: Callable[..., Pod], inside: bool, host: str, seen: str, force_clsact: bool
) -> None:
    pod = make_pod(force_clsact=force_clsact)
    group = pod.asleep("http")
    origin = pod.here if inside else pod.client
    made = origin.connect(host)
    assert made.getpeername()[1] == PORT
    assert ask(made).startswith(b"HTTP/1.1 200 OK")
    fired = pod.wait(EventKind.FIRED)
    assert fired.group == group and fired.value == 1
    pod.wait_ready()
    redirected = pod.activator.counters()["redirected"]

    # From now on the app itself answers, and sees the client.
    answer = ask(origin.connect(host))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.partition(b"\r\n\r\n")[2].split()[0] == seen.encode()
    assert pod.activator.counters()["redirected"] == redirected
    assert pod.starts == 1
    assert pod.activator.stats(group)["wakes"] == 1


def test_sleeps_and_wakes_again(pod: Pod) -> None:
    group = pod.asleep("http")
    for cycle in range(1, 6):
        assert ask(pod.client.connect(POD_V4)).startswith(b"HTTP/1.1 200")
        pod.wait(EventKind.READY)
        assert pod.starts == cycle
        pod.activator.hold(group)
        pod.kill_app()
        (pod.folder / "ready").unlink()
        assert pod.activator.arm(group, pod.plan("http")) is False


def test_server_speaks_first(pod: Pod) -> None:
    pod.asleep("banner")
    with pod.client.connect(POD_V4) as made:
        lines = made.makefile("rb")
        assert lines.readline() == b"220 ready\r\n"
        made.sendall(b"EHLO\r\n")
        assert lines.readline() == b"EHLO\r\n"
        assert lines.read() == b""


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_half_closed_upload(pod: Pod, host: str) -> None:
    body = os.urandom(4 << 20)
    pod.asleep("sink")
    with pod.client.connect(host) as made:
        made.sendall(body)
        made.shutdown(socket.SHUT_WR)
        assert read_all(made).decode() == f"{len(body)} {hashlib.sha256(body).hexdigest()}"


def test_large_post(pod: Pod) -> None:
    body = os.urandom(8 << 20)
    pod.asleep("http")
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = ask(pod.client.connect(POD_V4), head + body)
    assert answer.endswith(f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode())


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_a_thousand_at_once_wake_once(pod: Pod, host: str) -> None:
    group = pod.asleep("http", backlog=128)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    poll = selectors.DefaultSelector()
    answers: list[float] = []
    started = time.monotonic()
    for _ in range(1000):
        made = pod.client.make_socket(family)
        made.setblocking(False)
        made.connect_ex((host, PORT))
        poll.register(made, selectors.EVENT_WRITE)
    while poll.get_map():
        ready = poll.select(30)
        assert ready, f"{len(poll.get_map())} of 1000 have no answer"
        for key, mask in ready:
            made = key.fileobj
            assert isinstance(made, socket.socket)
            if mask & selectors.EVENT_WRITE:
                made.sendall(REQUEST)
                poll.modify(made, selectors.EVENT_READ)
            elif made.recv(4096).startswith(b"HTTP/1.1 200"):
                answers.append(time.monotonic() - started)
                poll.unregister(made)
                made.close()
            else:
                raise AssertionError("a connection ended without an answer")
    poll.close()
    pod.wait(EventKind.READY)
    print(f"1000 answers: median {statistics.median(answers):.3f} s, last {answers[-1]:.3f} s")
    assert len(answers) == 1000
    assert pod.starts == 1
    assert pod.activator.stats(group)["wakes"] == 1
    assert [event.kind for event in pod.seen].count(EventKind.FIRED) == 1


def test_a_listener_that_comes_late(pod: Pod) -> None:
    pod.asleep("late")
    assert ask(pod.client.connect(POD_V4)).startswith(b"HTTP/1.1 200")


def test_connections_go_on_over_the_wake(pod: Pod) -> None:
    """A spliced connection lives on while later ones go straight; its packets stay its own."""
    pod.asleep("banner")
    first = pod.client.connect(POD_V4)
    lines = first.makefile("rb")
    assert lines.readline() == b"220 ready\r\n"
    pod.wait(EventKind.READY)
    with pod.client.connect(POD_V4) as second:
        second.sendall(b"second\r\n")
        assert read_all(second) == b"220 ready\r\nsecond\r\n"
    first.sendall(b"first\r\n")
    assert lines.read() == b"first\r\n"
    lines.close()
    first.close()


def test_reset_by_the_app_is_a_reset(pod: Pod) -> None:
    pod.asleep("reset")
    with pod.client.connect(POD_V4) as made:
        made.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            made.recv(1)
