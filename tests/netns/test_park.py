"""Packets that are parked: what is put back, to whom it is refused, and what does not fit."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, TCP, IPOption_Router_Alert, fragment
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from lab import waiting
from tests.netns import bpf, tun
from tests.netns.conftest import CLIENT_V4, CLIENT_V6, POD_V4, POD_V6, PORT, Namespace, Pod
from tests.netns.test_wake import PROBE, ask, read_all
from zeropod._fastpath._activator import Activation, EventKind


@pytest.fixture
def activation() -> Activation:
    return Activation.PARK


@contextmanager
def opening(pod: Pod, host: str = POD_V4) -> Iterator[socket.socket]:
    """A client whose first packet is parked."""
    before = pod.activator.counters()["parked"]
    with pod.client.make_socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.setblocking(False)
        made.connect_ex((host, PORT))
        waiting.until("a parked SYN", lambda: pod.activator.counters()["parked"] > before)
        made.settimeout(60)
        yield made


def outcome(made: socket.socket) -> int:
    """The errno of a connect, when it has come to an end."""
    assert select.select([], [made], [], 60)[1], "the connect goes on"
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize(("host", "client"), [(POD_V4, CLIENT_V4), (POD_V6, CLIENT_V6)])
def test_the_app_sees_the_client_itself(pod: Pod, host: str, client: str) -> None:
    """By address and port, and nobody is between them."""
    pod.asleep("banner")
    with pod.client.connect(host) as made:
        assert made.recv(64) == b"220 ready\r\n"
        port = made.getsockname()[1]
        sockets = pod.here.ask("ss", "-tnH", "state", "established", "sport", f"= :{PORT}")
        (line,) = sockets.splitlines()
        assert line.split()[3] in (f"[::ffff:{client}]:{port}", f"[{client}]:{port}")
        assert not pod.here.ask("ss", "-tnH", "state", "established", "dport", f"= :{PORT}")
        assert pod.activator.stats(0)["spliced"] == 0
        made.sendall(b"bye\r\n")
        assert read_all(made) == b"bye\r\n"


# refused as by a host where nobody listens


def test_an_app_that_does_not_come_back(pod: Pod) -> None:
    group = pod.asleep("late", connect_timeout_ns=100_000_000)
    with opening(pod) as made:
        assert pod.wait(EventKind.CONNECT_TIMEOUT).value == 1
        assert outcome(made) == 111
    assert pod.activator.stats(group)["refused"] == 1


@pytest.mark.parametrize("end", ["drop", "remove", "close"])
@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_an_app_that_is_no_more(pod: Pod, end: str, host: str) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with opening(pod, host) as made:
        pod.wait(EventKind.PENDING)
        if end == "drop":
            pod.activator.drop(group)
        elif end == "remove":
            pod.activator.remove_group(group)
        else:
            pod.activator.close()
        assert outcome(made) == 111


def test_an_app_that_listens_elsewhere(pod: Pod) -> None:
    """On loopback alone: whoever comes from outside is refused, as awake."""
    group = pod.group()
    pod.activator.hold(group)
    with opening(pod) as made, pod.here.listen(PORT, host="127.0.0.1"):
        pod.activator.awake(group)
        assert outcome(made) == 111
    pod.wait_ready()


# who is it?


def test_openers_of_the_node_are_spliced(
    wire: tuple[Namespace, Namespace], make_pod: Callable[..., Pod]
) -> None:
    """By the addresses that the node has, as they come and go; they may be probes."""
    _, client = wire
    with bpf.inside(client.fd):  # the client's namespace is the node's
        pod = make_pod()
    group = pod.group(activation=Activation.AUTO)
    pod.activator.hold(group)

    def spliced(address: str) -> bool:
        with pod.client.make_socket() as made:
            made.bind((address, 0))
            made.setblocking(False)
            before = pod.activator.counters()
            made.connect_ex((POD_V4, PORT))

            def way() -> str | None:
                now = pod.activator.counters()
                ways = ("redirected", "parked")
                return next((name for name in ways if now[name] > before[name]), None)

            if waiting.until("its way", way) == "parked":
                return False
            made.settimeout(60)
            made.sendall(PROBE)
            assert read_all(made).startswith(b"HTTP/1.1 204")
            return True

    assert spliced(CLIENT_V4)
    client.run("ip", "address", "add", "10.9.0.77/24", "dev", "veth0")
    waiting.until("a new address of the node", lambda: spliced("10.9.0.77"))
    client.run("sysctl", "-qw", "net.ipv4.ip_nonlocal_bind=1")
    client.run("ip", "address", "delete", "10.9.0.77/24", "dev", "veth0")
    client.run("ip", "route", "add", "local", "10.9.0.77", "dev", "lo")
    waiting.until("the end of an address", lambda: not spliced("10.9.0.77"))
    assert spliced(CLIENT_V4)


def test_openers_in_the_pod_are_parked(pod: Pod) -> None:
    group = pod.asleep("http", activation=Activation.AUTO)
    assert ask(pod.here.connect("127.0.0.1")).startswith(b"HTTP/1.1 200")
    assert pod.activator.stats(group)["parked"] == 1


# packets of every kind


@pytest.fixture
def far(wire: tuple[Namespace, Namespace]) -> Iterator[int]:
    with tun.device(wire[0], "tun0") as fd:
        yield fd


def wake(pod: Pod, group: int) -> socket.socket:
    listener = pod.here.listen(PORT)
    pod.activator.awake(group)
    pod.wait_ready()
    return listener


@pytest.mark.parametrize("way", ["v4", "v6", "v4 options", "v4 fragments"])
def test_what_is_put_back_is_answered(far: int, make_pod: Callable[..., Pod], way: str) -> None:
    pod = make_pod()
    group = pod.group()
    pod.activator.hold(group)
    there = IP(src=tun.V4[0], dst=tun.V4[1])
    syn = TCP(sport=40000, dport=PORT, flags="S", seq=7)
    if way == "v6":
        packets = [IPv6(src=tun.V6[0], dst=tun.V6[1]) / syn]
    elif way == "v4 options":
        packets = [IP(src=tun.V4[0], dst=tun.V4[1], options=[IPOption_Router_Alert()]) / syn]
    elif way == "v4 fragments":
        packets = fragment(there / syn / Raw(bytes(1000)), 400)
    else:
        packets = [there / syn]
    for packet in packets:
        os.write(far, bytes(packet))
    pod.wait(EventKind.PENDING)
    listener = pod.here.listen(PORT, socket.AF_INET6 if way == "v6" else socket.AF_INET)
    with listener:
        pod.activator.awake(group)
        assert tun.next_tcp(far).flags == "SA"
    if way == "v4 fragments":
        assert pod.activator.counters()["fragment"] == len(packets) - 1


def test_what_was_damaged_is_not_mended(far: int, make_pod: Callable[..., Pod]) -> None:
    """A wrong checksum stays wrong: its SYN is not answered, the right one behind it is."""
    pod = make_pod()
    group = pod.group()
    pod.activator.hold(group)
    there = IP(src=tun.V4[0], dst=tun.V4[1])
    for port, damage in ((40000, 1), (40001, 0)):
        packet = bytearray(bytes(there / TCP(sport=port, dport=PORT, flags="S")))
        packet[36] ^= damage
        os.write(far, packet)
    waiting.until("both", lambda: pod.activator.counters()["parked"] == 2)
    with pod.here.listen(PORT):
        pod.activator.awake(group)
        assert tun.next_tcp(far).dport == 40001
        pod.wait_ready()
    assert pod.activator.stats(group)["parked"] == 2


def test_one_that_was_sent_again_is_put_back_once(pod: Pod) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with opening(pod) as made:
        waiting.until("another", lambda: pod.activator.counters()["parked"] >= 2)
        with wake(pod, group) as listener:
            assert outcome(made) == 0
            listener.accept()[0].close()
    assert pod.activator.stats(group)["parked"] == 1


def test_an_opener_that_is_gone_harms_nobody(pod: Pod) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with opening(pod):
        pass
    with opening(pod) as made, wake(pod, group) as listener:
        assert outcome(made) == 0
        listener.accept()[0].close()
