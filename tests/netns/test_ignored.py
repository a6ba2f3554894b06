"""Sources that wake nobody, and keep nobody awake."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import pytest

from tests.netns.conftest import CLIENT_V4, CLIENT_V6, OPTIONS, POD_V4, POD_V6, PORT, Pod
from tests.netns.test_wake import ask, read_all
from zeropod._fastpath._activator import Activation

MakePod = Callable[..., Pod]
OTHER_V4, OTHER_V6 = "10.9.0.50", "fd09::50"


def network(text: str) -> tuple[bytes, int]:
    found = ipaddress.ip_network(text)
    if found.version == 6:
        return found.network_address.packed, found.prefixlen
    return b"\0" * 10 + b"\xff\xff" + found.network_address.packed, 96 + found.prefixlen


def opener(pod: Pod, host: str, address: str) -> socket.socket:
    made = pod.client.make_socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.bind((address, 0))
    return made


@pytest.fixture(params=[Activation.PARK, Activation.SPLICE], ids=["park", "splice"])
def activation(request: pytest.FixtureRequest) -> Activation:
    return request.param


@pytest.fixture
def make_ignoring(make_pod: MakePod) -> Callable[[str], Pod]:
    def make(*texts: str) -> Pod:
        pod = make_pod(ignored=[network(text) for text in texts])
        pod.client.run("ip", "address", "add", f"{OTHER_V4}/24", "dev", "veth0")
        pod.client.run("ip", "address", "add", f"{OTHER_V6}/64", "dev", "veth0", "nodad")
        return pod

    return make


@pytest.mark.parametrize(
    ("host", "ignored", "other", "networks"),
    [
        (POD_V4, CLIENT_V4, OTHER_V4, [f"{CLIENT_V4}/32"]),
        (POD_V4, CLIENT_V4, OTHER_V4, ["10.9.0.0/28", "192.0.2.0/24"]),
        (POD_V6, CLIENT_V6, OTHER_V6, ["fd09::/124", "10.0.0.0/8"]),
    ],
)
def test_asleep_they_are_refused_and_others_are_served(
    make_ignoring: Callable[..., Pod], host: str, ignored: str, other: str, networks: list[str]
) -> None:
    pod = make_ignoring(*networks)
    group = pod.asleep("http")
    before = pod.activator.last_activity_ns(group)
    for count in (1, 2):
        with opener(pod, host, ignored) as made, pytest.raises(ConnectionRefusedError):
            made.connect((host, PORT))
        assert pod.activator.counters()["ignored"] == count
    assert pod.activator.stats(group)["wakes"] == 0
    assert pod.activator.last_activity_ns(group) == before
    made = opener(pod, host, other)
    made.connect((host, PORT))
    assert ask(made).startswith(b"HTTP/1.1 200")
    assert pod.activator.stats(group)["wakes"] == 1


@pytest.mark.parametrize(
    ("host", "ignored", "other"),
    [(POD_V4, CLIENT_V4, OTHER_V4), (POD_V6, CLIENT_V6, OTHER_V6)],
)
def test_awake_they_are_served_and_do_not_count(
    make_ignoring: Callable[..., Pod], host: str, ignored: str, other: str
) -> None:
    pod = make_ignoring(f"{CLIENT_V4}/32", f"{CLIENT_V6}/128")
    group = pod.asleep("banner")

    def said(address: str) -> bytes:
        with opener(pod, host, address) as made:
            made.connect((host, PORT))
            made.sendall(b"hello\r\n")
            return read_all(made)

    assert said(other) == b"220 ready\r\nhello\r\n"
    pod.wait_ready()
    before = pod.activator.last_activity_ns(group)
    assert said(ignored) == b"220 ready\r\nhello\r\n"
    assert pod.activator.last_activity_ns(group) == before
    said(other)
    assert pod.activator.last_activity_ns(group) > before
    assert pod.activator.counters()["ignored"] == 0


def test_their_datagrams_are_dropped(make_pod: MakePod) -> None:
    pod = make_pod(udp=True, ignored=[network(f"{CLIENT_V4}/32")])
    group = pod.activator.add_group((), udp_ports=(PORT,), **OPTIONS)
    pod.activator.hold(group)
    with pod.client.make_socket(kind=socket.SOCK_DGRAM) as made:
        made.sendto(b"hello", (POD_V4, PORT))
    assert pod.activator.counters()["parked"] == 0
    assert pod.activator.last_activity_ns(group) == 0
