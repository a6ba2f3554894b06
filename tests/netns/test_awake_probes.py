"""Awake, a kubelet's probes reach the app and do not count as activity; users from the node do.

The client's namespace is the node's here: its addresses are those that probes come from.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from lab import waiting
from tests.netns.conftest import CLIENT_V4, POD_V4, POD_V6, PORT, Namespace, Pod, reset
from tests.netns.test_wake import PROBE, REQUEST, ask, read_all

MakePod = Callable[..., Pod]
AGENT = b"User-Agent: kube-probe/1.31\r\n"


def counts(pod: Pod, act: Callable[[], object]) -> bool:
    """Whether it is activity; after the time in which everything is, for the app is in use."""
    before = pod.wait_quiet()
    act()
    return pod.activator.last_activity_ns(0) != before


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
@pytest.mark.parametrize(
    "request_",
    [
        PROBE,
        b"HEAD / HTTP/1.1\r\nHost: x\r\n" + AGENT + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + AGENT.lower() + b"\r\n",
        b"GET /" + b"x" * 400 + b" HTTP/1.1\r\n" + AGENT + b"\r\n",
        b"GET / HTTP/1.1\r\nX-A: b\r\nAccept: */*\r\nConnection: close\r\n" + AGENT + b"\r\n",
        b"POST / HTTP/1.1\r\n" + AGENT + b"Content-Length: 3\r\n\r\nabc",
    ],
    ids=["get", "head", "lower case", "long path", "other headers", "post"],
)
def test_an_http_probe_is_answered_and_does_not_count(
    make_awake: Callable[..., Pod], host: str, request_: bytes
) -> None:
    pod = make_awake("http")

    def probe() -> None:
        assert ask(pod.client.connect(host), request_).startswith(b"HTTP/1.1 200")

    assert not counts(pod, probe)
    assert pod.activator.stats(0)["probes_awake"] == 1


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST,
        b"GET / HTTP/1.1\r\nUser-Agent: kube-prober/1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-User-Agent: kube-probe/1\r\n\r\n",
        b"GET /?User-Agent: kube-probe/ HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 1024 + b" HTTP/1.1\r\n" + AGENT + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\6",
    ],
    ids=["user", "another name", "another header", "in the path", "too far", "tls", "http2"],
)
def test_what_is_no_probe_counts(make_awake: Callable[..., Pod], request_: bytes) -> None:
    """Also what cannot be read, and a name that stands too far behind to be looked for."""
    pod = make_awake("http")
    assert counts(pod, lambda: ask(pod.client.connect(POD_V4), request_))


def test_a_name_in_two_segments_counts(make_awake: Callable[..., Pod]) -> None:
    """Only the first one is looked at."""
    pod = make_awake("sink")

    def speak() -> None:
        with pod.client.connect(POD_V4) as made:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.sendall(b"GET / HTTP/1.1\r\n")
            made.sendall(AGENT + b"\r\n")
            made.shutdown(socket.SHUT_WR)
            read_all(made)

    assert counts(pod, speak)


@pytest.mark.parametrize("end", ["close", "reset"])
def test_who_opens_and_closes_does_not_count(make_awake: Callable[..., Pod], end: str) -> None:
    pod = make_awake("sink")

    def probe() -> None:
        made = pod.client.connect(POD_V4)
        if end == "reset":
            reset(made)
        else:
            made.shutdown(socket.SHUT_WR)
            read_all(made)
            made.close()

    assert not counts(pod, probe)


def test_who_listens_first_counts_when_he_speaks(make_awake: Callable[..., Pod]) -> None:
    pod = make_awake("banner")
    with pod.client.connect(POD_V4) as made:
        assert not counts(pod, lambda: made.recv(64))
        made.sendall(b"bye\r\n")
        assert read_all(made) == b"bye\r\n"
    assert counts(pod, lambda: ask(pod.client.connect(POD_V4), b"hello\r\n"))


def test_a_probe_from_elsewhere_counts(make_awake: Callable[..., Pod]) -> None:
    """Who is not of the node is no kubelet, whatever he says."""
    pod = make_awake("http")
    pod.client.run("ip", "address", "add", "10.9.0.60/32", "dev", "lo")
    other = Namespace()
    try:
        pod.client.run(
            "ip",
            "link",
            "add",
            "far",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(other.pid),
        )
        pod.client.run("ip", "link", "set", "far", "up")
        pod.client.run("ip", "address", "add", "10.10.0.1/24", "dev", "far")
        pod.client.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        other.run("ip", "link", "set", "eth0", "up")
        other.run("ip", "address", "add", "10.10.0.2/24", "dev", "eth0")
        other.run("ip", "route", "add", "default", "via", "10.10.0.1")
        pod.here.run("ip", "route", "add", "10.10.0.0/24", "via", CLIENT_V4)
        assert counts(pod, lambda: ask(other.connect(POD_V4), PROBE))
    finally:
        other.close()


def test_without_detection_probes_count(make_awake: Callable[..., Pod]) -> None:
    pod = make_awake("http", probe_detection=False)
    assert counts(pod, lambda: ask(pod.client.connect(POD_V4), PROBE))


def test_nothing_is_remembered_of_probes_that_have_ended(make_awake: Callable[..., Pod]) -> None:
    """More than could be remembered at once, one after another."""
    pod = make_awake("http", backlog=128)

    def probes() -> None:
        for _ in range(2500):
            assert ask(pod.client.connect(POD_V4), PROBE).startswith(b"HTTP/1.1 200")

    probes()
    waiting.until("the end of all", lambda: pod.activator.last_undecided_ns(0) == 0)
    assert not counts(pod, lambda: ask(pod.client.connect(POD_V4), PROBE))


def test_a_tuple_that_is_used_again_is_another_connection(make_awake: Callable[..., Pod]) -> None:
    pod = make_awake("http")

    def asks(request: bytes) -> None:
        with pod.client.make_socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((CLIENT_V4, 45000))
            made.connect((POD_V4, PORT))
            made.sendall(request)
            made.recv(4096)
            reset(made)

    assert not counts(pod, lambda: asks(PROBE))
    assert counts(pod, lambda: asks(REQUEST))
    assert not counts(pod, lambda: asks(PROBE))


def test_in_use_nobody_is_asked(make_awake: Callable[..., Pod]) -> None:
    """Users by a NodePort come from the node's address as well, and may be many."""
    pod = make_awake("http")
    for _ in range(50):
        ask(pod.client.connect(POD_V4))
    assert pod.activator.counters()["asked"] < 25


def test_who_has_not_spoken_yet_is_known(make_awake: Callable[..., Pod]) -> None:
    """As is a probe that waits for its answer: a dump would cut both off."""
    pod = make_awake("sink")
    assert pod.activator.last_undecided_ns(0) == 0
    before = time.monotonic_ns()
    with pod.client.connect(POD_V4) as made:
        silent_ns = pod.activator.last_undecided_ns(0)
        assert before < silent_ns < time.monotonic_ns()
        made.sendall(PROBE)
        waiting.until("the answer", lambda: pod.activator.stats(0)["probes_awake"] == 1)
        assert pod.activator.last_undecided_ns(0) > silent_ns
        made.shutdown(socket.SHUT_WR)
        read_all(made)
    waiting.until("its end", lambda: pod.activator.last_undecided_ns(0) == 0)
    assert counts(pod, lambda: ask_sink(pod))
    assert pod.activator.last_undecided_ns(0) == 0


def ask_sink(pod: Pod) -> None:
    with pod.client.connect(POD_V4) as made:
        made.sendall(REQUEST)
        made.shutdown(socket.SHUT_WR)
        read_all(made)
