"""Datagrams to a sleeping app: parked, and put back in their order."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from tests.netns.conftest import OPTIONS, POD_V4, POD_V6, PORT, Namespace, Pod
from zeropod._fastpath._activator import EventKind

_UDP_SEGMENT = 103
_SO_NO_CHECK = 11


@pytest.fixture
def pod(make_pod: Callable[..., Pod]) -> Pod:
    return make_pod(udp=True)


def asleep(pod: Pod, **options: object) -> int:
    given = {**OPTIONS, "udp_ports": (PORT,), **options}
    group = pod.activator.add_group((), **given)
    pod.activator.hold(group)
    assert pod.activator.arm(group, pod.plan("udp")) is False
    return group


def datagrams(origin: Namespace, host: str) -> socket.socket:
    made = origin.make_socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.connect((host, PORT))
    return made


@pytest.mark.parametrize("force_clsact", [False, True], ids=["tcx", "clsact"])
@pytest.mark.parametrize(
    ("inside", "host"),
    [
        (False, POD_V4),
        (False, POD_V6),
        (True, "127.0.0.1"),
        (True, "::1"),
        (True, POD_V4),
        (True, POD_V6),
    ],
)
def test_the_first_datagram_is_answered(
    make_pod: Callable[..., Pod], inside: bool, host: str, force_clsact: bool
) -> None:
    pod = make_pod(udp=True, force_clsact=force_clsact)
    group = asleep(pod)
    with datagrams(pod.here if inside else pod.client, host) as made:
        made.send(b"first")
        assert made.recv(64) == b"first"  # from where it was sent to, or it would not be taken
        pod.wait(EventKind.FIRED)
        pod.wait_ready()
        parked = pod.activator.counters()["parked"]
        made.send(b"second")
        assert made.recv(64) == b"second"
    assert pod.activator.counters()["parked"] == parked == 1
    assert pod.activator.stats(group)["wakes"] == pod.starts == 1


def test_they_come_in_their_order(pod: Pod) -> None:
    """Those before the wake-up, those of its time and those after it."""
    group = pod.activator.add_group((), udp_ports=(PORT,), **OPTIONS)
    pod.activator.hold(group)
    got = []
    with datagrams(pod.client, POD_V4) as made:
        for number in range(100):
            made.send(struct.pack("I", number))
        assert pod.activator.arm(group, pod.plan("udp")) is True
        for number in range(100, 2000):  # there are always a hundred on the way
            got.append(struct.unpack("I", made.recv(64))[0])
            made.send(struct.pack("I", number))
    assert got == list(range(1900))
    assert 100 <= pod.activator.stats(group)["parked"] < 1000


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_a_datagram_in_fragments(pod: Pod, host: str) -> None:
    group = asleep(pod)
    data = bytes(range(256)) * 16
    with datagrams(pod.client, host) as made:
        made.send(data)
        assert made.recv(65536) == data
    assert pod.activator.counters()["fragment"] == 4  # two on each way
    assert pod.activator.stats(group)["parked"] == 1


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_many_segments_at_once(pod: Pod, host: str) -> None:
    """As QUIC sends them: one packet for all to the programs, apart for the app."""
    group = asleep(pod)
    pieces = [bytes([number]) * 1200 for number in range(40)]
    with datagrams(pod.client, host) as made:
        size = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("H", 1200))]
        made.sendmsg([b"".join(pieces)], size)
        assert [made.recv(65536) for _ in pieces] == pieces
    assert pod.activator.stats(group)["parked"] == 1


def test_one_without_a_checksum(pod: Pod) -> None:
    asleep(pod)
    with datagrams(pod.client, POD_V4) as made:
        made.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        made.send(b"plain")
        assert made.recv(64) == b"plain"


def test_nobody_there(pod: Pod) -> None:
    group = asleep(pod)
    with datagrams(pod.client, POD_V4) as made:
        made.send(b"first")
        pod.activator.drop(group)
        with pytest.raises(ConnectionRefusedError):
            made.recv(64)


def test_both_ways_are_activity(pod: Pod) -> None:
    group = asleep(pod)
    with datagrams(pod.client, POD_V4) as made:
        made.send(b"first")
        assert made.recv(64) == b"first"
        before = pod.activator.last_activity_ns(group)
        made.send(b"second")
        assert made.recv(64) == b"second"
        assert pod.activator.last_activity_ns(group) > before


def test_what_does_not_fit_is_dropped_and_the_rest_is_there(pod: Pod) -> None:
    group = pod.activator.add_group((), udp_ports=(PORT,), **OPTIONS)
    pod.activator.hold(group)
    with datagrams(pod.client, POD_V4) as made:
        for number in range(5000):
            made.send(struct.pack("I", number))
        counters = pod.activator.counters()
        assert counters["parked"] + counters["parked_full"] == 5000
        assert pod.activator.arm(group, pod.plan("udp")) is True
        got = [struct.unpack("I", made.recv(64))[0] for _ in range(300)]
        assert got == sorted(got)
