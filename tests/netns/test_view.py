"""What is shown of a group's ports: whose the last activity was, and why it counts."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.netns.conftest import CLIENT_V4, CLIENT_V6, POD_V4, POD_V6, PORT, Pod
from tests.netns.test_wake import PROBE, REQUEST, ask
from zeropod._fastpath._activator import Mode, PortView, Unread

MakePod = Callable[..., Pod]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


def only(pod: Pod) -> PortView:
    (port,) = pod.activator.view(0)
    return port


def mapped(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(address)


@pytest.mark.parametrize(("host", "client"), [(POD_V4, CLIENT_V4), (POD_V6, CLIENT_V6)])
def test_whose_the_last_packet_was(pod: Pod, host: str, client: str) -> None:
    group = pod.group()
    assert only(pod).last_activity_ns == 0
    with pod.here.listen(PORT, socket.AF_INET6) as listener, pod.client.connect(host) as made:
        port = made.getsockname()[1]
        found = only(pod)
        assert (found.number, found.udp, found.mode) == (PORT, False, Mode.PASS)
        assert (found.remote, found.remote_port) == (mapped(client), port)
        assert found.last_activity_ns == pod.activator.last_activity_ns(group)
        app, _ = listener.accept()
        with app, pod.client.connect(host) as other:
            assert only(pod).remote_port == other.getsockname()[1]
            app.sendall(b"out")  # what the app says counts for him whom it says it to
            assert made.recv(3) == b"out"
            assert (only(pod).remote, only(pod).remote_port) == (mapped(client), port)


def test_who_is_of_the_node(node_pod: Pod) -> None:
    node_pod.group(probe_detection=False)
    with node_pod.here.listen(PORT), node_pod.client.connect(POD_V4):
        assert only(node_pod).of_node


def test_who_is_not(pod: Pod) -> None:
    pod.group()
    with pod.here.listen(PORT), pod.client.connect(POD_V4):
        assert not only(pod).of_node


@pytest.mark.parametrize(
    ("said", "unread"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", Unread.TLS),
        (PREFACE + b"\0\0\x64\x01\x04\0\0\0\x01part of a call", Unread.HTTP2),
        (REQUEST, Unread.NO),
    ],
    ids=["tls", "http2", "user"],
)
def test_what_cannot_be_read_says_so(
    make_awake: Callable[..., Pod], said: bytes, unread: Unread
) -> None:
    pod = make_awake("http")
    pod.wait_quiet()
    ask(pod.client.connect(POD_V4), said)
    found = only(pod)
    assert found.of_node and found.remote == mapped(CLIENT_V4) and found.unread is unread
    before_ns = found.last_activity_ns
    pod.wait_quiet()
    ask(pod.client.connect(POD_V4), PROBE)  # a probe is not remembered as anybody's activity
    assert only(pod)[:5] == found[:5] and only(pod).last_activity_ns == before_ns


def test_what_is_done_asleep(pod: Pod) -> None:
    group = pod.group(udp_ports=(53,), activation=pod.activation)
    pod.activator.hold(group)
    tcp, udp = pod.activator.view(group)
    assert tcp.mode in (Mode.REDIRECT, Mode.PARK, Mode.PARK_ALL)
    assert (udp.number, udp.udp, udp.mode) == (53, True, Mode.PARK_ALL)
    pod.activator.drop(group)
    assert [port.mode for port in pod.activator.view(group)] == [Mode.PASS, Mode.PASS]


def test_a_group_that_is_removed(pod: Pod) -> None:
    group = pod.group()
    pod.activator.remove_group(group)
    with pytest.raises(FileNotFoundError):
        pod.activator.view(group)
