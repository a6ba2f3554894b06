"""A connection to a sleeping app wakes it and is served whole, whichever way it comes."""

from __future__ import annotations

import hashlib
import os
import select
import selectors
import smtplib
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import waiting
from tests.netns.conftest import CLIENT_V4, CLIENT_V6, POD_V4, POD_V6, PORT, Namespace, Pod
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


class Smtp(smtplib.SMTP):
    """A client whose connection is made elsewhere."""

    def __init__(self, made: socket.socket) -> None:
        self._made = made
        super().__init__(POD_V4, PORT, local_hostname="client")

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._made


def test_a_mail_wakes(pod: Pod) -> None:
    """SMTP: the server greets, and the client says nothing before it has."""
    pod.asleep("smtp")
    with Smtp(pod.client.connect(POD_V4)) as client:
        assert client.ehlo() == (250, b"app\n8BITMIME")
        assert client.docmd("MAIL", "FROM:<a@b>")[0] == 250
        assert client.docmd("RCPT", "TO:<c@d>")[0] == 250
        assert client.data(b"hello\r\n") == (250, b"7 bytes")
    assert pod.starts == 1


def test_a_login_to_a_database_wakes(pod: Pod) -> None:
    """MySQL: packets with a length and a number, and the first one is the server's."""
    pod.asleep("mysql")
    with pod.client.connect(POD_V4) as made, made.makefile("rb") as stream:

        def read(number: int) -> bytes:
            head = stream.read(4)
            assert head[3] == number
            return stream.read(int.from_bytes(head[:3], "little"))

        def write(number: int, data: bytes) -> None:
            made.sendall(len(data).to_bytes(3, "little") + bytes([number]) + data)

        assert read(0).startswith(b"\x0a8.0.0-app\0")
        write(1, b"login")
        assert read(2) == bytes(7)
        write(0, b"\x03select 1")
        assert read(1) == b"\x03select 1"
    assert pod.starts == 1


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


def tcp_counts(namespace: Namespace) -> dict[str, int]:
    """What the kernel has counted of TCP, by its own names."""
    found: dict[str, int] = {}
    for table in ("snmp", "netstat"):
        lines = Path(f"/proc/{namespace.pid}/net/{table}").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            if names.startswith("Tcp"):
                found |= zip(names.split()[1:], map(int, values.split()[1:]), strict=True)
    return found


def thousand(pod: Pod, host: str) -> list[socket.socket]:
    """Their connects have been begun."""
    made = []
    for _ in range(1000):
        made.append(pod.client.make_socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        made[-1].setblocking(False)
        made[-1].connect_ex((host, PORT))
    return made


def ask_all(openers: list[socket.socket]) -> None:
    """Each of them asks when he is connected, and must be answered."""
    poll = selectors.DefaultSelector()
    answers: list[float] = []
    started = time.monotonic()
    for made in openers:
        poll.register(made, selectors.EVENT_WRITE)
    while poll.get_map():
        ready = poll.select(30)
        assert ready, f"{len(poll.get_map())} of {len(openers)} have no answer"
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
    print(f"answers: median {statistics.median(answers):.3f} s, last {answers[-1]:.3f} s")
    assert len(answers) == len(openers)


def woken_once(pod: Pod, group: int) -> bool:
    fired = [event.kind for event in pod.seen].count(EventKind.FIRED)
    return pod.starts == pod.activator.stats(group)["wakes"] == fired == 1


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_a_thousand_at_once_wake_once(pod: Pod, host: str) -> None:
    group = pod.asleep("http", backlog=128)
    ask_all(thousand(pod, host))
    pod.wait(EventKind.READY)
    assert woken_once(pod, group)


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
@pytest.mark.parametrize("backlog", [128, 4096])
def test_of_a_thousand_who_wait_nobody_has_to_come_again(pod: Pod, host: str, backlog: int) -> None:
    """Each is served by the SYN that he sent first: none was lost, none met a full queue.

    On a slow machine one may be sent again while the first is still parked; that helps nobody.
    """
    group = pod.group()
    pod.activator.hold(group)
    sent, met = tcp_counts(pod.client), tcp_counts(pod.here)
    openers = thousand(pod, host)
    waiting.until("all of them", lambda: pod.activator.stats(group)["held"] == 1000)
    assert pod.activator.arm(group, pod.plan("http", backlog=backlog)) is True
    ask_all(openers)
    pod.wait(EventKind.READY)
    assert woken_once(pod, group)
    counters = pod.activator.counters()
    again = tcp_counts(pod.client)["TCPSynRetrans"] - sent["TCPSynRetrans"]
    print(f"{again} SYNs were sent again, {counters['parked']} parked")
    if pod.activation == Activation.PARK:
        assert pod.activator.stats(group)["parked"] == 1000
        assert (again, counters["parked_full"]) == (counters["parked"] - 1000, 0)
    else:
        assert (again, counters["redirected"]) == (0, 1000)
    for name in ("ListenOverflows", "ListenDrops", "TCPReqQFullDrop"):
        assert tcp_counts(pod.here)[name] == met[name], name


@pytest.mark.parametrize("backlog", [0, 1])
def test_a_listener_with_hardly_any_room(pod: Pod, backlog: int) -> None:
    pod.asleep("http", backlog=backlog)
    made = []
    for _ in range(8):
        one = pod.client.make_socket()
        one.setblocking(False)
        one.connect_ex((POD_V4, PORT))
        made.append(one)
    for one in made:
        assert select.select([], [one], [], 60)[1], "the connect goes on"
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        one.settimeout(60)
        assert ask(one, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


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
