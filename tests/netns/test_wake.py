"""A connection to a sleeping app wakes it and is served whole, whichever way it comes."""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Callable

import pytest

from tests.netns.conftest import CLIENT_V4, CLIENT_V6, POD_V4, POD_V6, PORT, Pod, reset
from zeropod._fastpath._activator import EventKind

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


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_http_probes_are_answered_and_wake_nothing(pod: Pod, host: str) -> None:
    group = pod.asleep("http")
    took = []
    for _ in range(50):
        started = time.perf_counter()
        answer = ask(pod.client.connect(host), PROBE)
        took.append((time.perf_counter() - started) * 1e3)
        assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
    print(f"probe: median {statistics.median(took):.2f} ms, max {max(took):.2f} ms")
    assert statistics.median(took) < 1000, "the patience of a kubelet"
    assert pod.activator.stats(group)["probes"] == 50
    assert not [event for event in pod.take_events() if event.kind == EventKind.FIRED]
    assert ask(pod.client.connect(host)).startswith(b"HTTP/1.1 200")


def test_a_probe_in_pieces(pod: Pod) -> None:
    group = pod.asleep("http")
    with pod.client.connect(POD_V4) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(PROBE)):
            made.sendall(PROBE[at : at + 1])
        assert read_all(made).startswith(b"HTTP/1.1 204")
    assert pod.activator.stats(group)["wakes"] == 0


def test_tcp_probes_wake_nothing(pod: Pod) -> None:
    group = pod.asleep("http")
    for _ in range(20):
        pod.client.connect(POD_V4).close()
    with pod.client.connect(POD_V4) as made:  # and one that resets
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # An HTTP probe behind them: when it has its answer, they have been seen.
    assert ask(pod.client.connect(POD_V4), PROBE).startswith(b"HTTP/1.1 204")
    assert pod.activator.stats(group)["wakes"] == 0
    assert pod.starts == 0


def test_probes_are_users_where_detection_is_off(pod: Pod) -> None:
    pod.asleep("http", probe_detection=False)
    assert ask(pod.client.connect(POD_V4), PROBE).startswith(b"HTTP/1.1 200")
    assert pod.wait(EventKind.FIRED)


def test_reset_by_the_app_is_a_reset(pod: Pod) -> None:
    pod.asleep("reset")
    with pod.client.connect(POD_V4) as made:
        made.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            made.recv(1)


def test_reset_by_the_client_is_a_reset(pod: Pod) -> None:
    with pod.spliced(b"hello") as (made, app):
        assert app.recv(5) == b"hello"
        reset(made)
        with pytest.raises(ConnectionResetError):
            app.recv(1)


def test_idle_connections_end_where_a_time_is_set(pod: Pod) -> None:
    pod.asleep("banner", proxy_timeout_ns=200_000_000)
    with pod.client.connect(POD_V4) as made:
        assert made.recv(64) == b"220 ready\r\n"
        with pytest.raises(ConnectionResetError):
            made.recv(1)
