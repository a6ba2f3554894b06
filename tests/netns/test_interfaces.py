"""On which interfaces the programs are: also on those that come later, or have no Ethernet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.netns import tun
from tests.netns.conftest import PORT, Namespace, Pod
from zeropod._fastpath._activator import Activator, EventKind


@pytest.mark.parametrize("force_clsact", [False, True], ids=["tcx", "clsact"])
@pytest.mark.parametrize("network", [IP, IPv6], ids=["v4", "v6"])
def test_a_connection_by_a_tun_device_is_held(
    make_pod: Callable[..., Pod],
    wire: tuple[Namespace, Namespace],
    network: type,
    force_clsact: bool,
) -> None:
    here, _ = wire
    far, near = tun.V4 if network is IP else tun.V6
    with tun.device(here, "tun0") as fd:
        pod = make_pod(force_clsact=force_clsact)
        group = pod.group()
        pod.activator.hold(group)
        packet = network(src=far, dst=near) / TCP(sport=40000, dport=PORT, flags="S", seq=7)
        found = tun.answer(fd, packet)
        assert (found.flags, found.sport, found.ack) == ("SA", PORT, 8)
        assert pod.activator.counters()["redirected"] == 1


@pytest.mark.parametrize("force_clsact", [False, True], ids=["tcx", "clsact"])
def test_an_interface_that_comes_later_is_watched_from_the_next_sleep_on(
    make_pod: Callable[..., Pod], force_clsact: bool
) -> None:
    pod = make_pod(force_clsact=force_clsact)
    here, client = pod.here, pod.client
    group = pod.group()
    for number in range(12):  # more than fit at once
        near, far = f"10.{number}.7.2", f"10.{number}.7.1"
        client.run(
            *("ip", "link", "add", "late", "type", "veth"),
            *("peer", "name", f"late{number}", "netns", str(here.pid)),
        )
        client.run("ip", "link", "set", "late", "up")
        here.run("ip", "link", "set", f"late{number}", "up")
        client.run("ip", "address", "add", f"{far}/24", "dev", "late")
        here.run("ip", "address", "add", f"{near}/24", "dev", f"late{number}")
        pod.activator.hold(group)
        with client.connect(near):
            pod.wait(EventKind.PENDING)
        client.run("ip", "link", "delete", "late")
        pod.activator.drop(group)
    assert pod.activator.counters()["redirected"] == 12


def test_more_interfaces_than_can_be_watched_are_said(wire: tuple[Namespace, Namespace]) -> None:
    here, _ = wire
    for number in range(4):  # two each, and eth0 and lo
        here.run("ip", "link", "add", f"a{number}", "type", "veth", "peer", "name", f"b{number}")
    with pytest.raises(OSError, match="more than 8 interfaces"):
        Activator(here.fd, count_loopback=False)


def test_more_tun_devices_than_can_be_told_are_said(wire: tuple[Namespace, Namespace]) -> None:
    here, _ = wire
    for number in range(5):
        here.run("ip", "tuntap", "add", f"t{number}", "mode", "tun")
    with pytest.raises(OSError, match="more than 4 interfaces without Ethernet"):
        Activator(here.fd, count_loopback=False)


def test_a_pod_that_has_too_many_later_stays_awake(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod()
    group = pod.group()
    for number in range(4):
        pod.here.run(
            *("ip", "link", "add", f"a{number}", "type", "veth", "peer", "name", f"b{number}")
        )
    with pytest.raises(OSError, match="more than 8 network interfaces"):
        pod.activator.hold(group)
    with pod.here.listen(PORT) as listener, pod.client.connect("10.9.0.2"):
        listener.accept()[0].close()
