"""What the BPF programs do to single frames, run by the kernel on frames that are built here.

A SYN to a sleeping app's port has the activator's port put in, with the right checksum, behind
whatever headers; every other frame passes as it is, and what was unusual about it is counted.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_Router_Alert,
    IPOption_Timestamp,
    fragment,
)
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from lab import waiting
from tests.netns import bpf, tun
from tests.netns.conftest import CLIENT_V4, CLIENT_V6, POD_V4, POD_V6, PORT, Namespace, Pod
from zeropod._fastpath._activator import EventKind

PASS, DROP = -1, 2
ETH0 = 2
POD_MAC = "02:00:00:00:00:02"
ETHER = Ether(src="02:00:00:00:00:01", dst=POD_MAC)
V4 = ETHER / IP(src=CLIENT_V4, dst=POD_V4)
V6 = ETHER / IPv6(src=CLIENT_V6, dst=POD_V6)
SYN = TCP(sport=40000, dport=PORT, flags="S", seq=7, options=[("MSS", 1460)])
SUMMED = Raw(bytes(V6 / SYN)[14 + 40 :])  # where the library does not fill in the checksum
AUTHENTIC = AH(nh=6, payloadlen=4, icv=b"123456789012")
ROUTED = IPv6ExtHdrRouting(type=2, segleft=0, addresses=["fd09::3"])

OPENER = bytes(V4 / TCP(sport=1, dport=PORT, flags="S"))

WAYS = {
    "v4": V4 / SYN,
    "v4 options": ETHER
    / IP(src=CLIENT_V4, dst=POD_V4, options=[IPOption_Router_Alert(), IPOption_Timestamp()])
    / SYN,
    "v4 padded": V4 / SYN / Raw(b""),
    "v4 fast open": V4 / SYN / Raw(b"GET / HTTP/1.1\r\n"),
    "v6": V6 / SYN,
    "v6 hop by hop": V6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"12345678")]) / SYN,
    "v6 destination": V6 / IPv6ExtHdrDestOpt() / SYN,
    "v6 routing": V6 / ROUTED / SYN,
    "v6 authentication": V6 / AUTHENTIC / SUMMED,
    "v6 fragment, whole": V6 / IPv6ExtHdrFragment(offset=0, m=0, id=5) / SYN,
    "v6 six headers": V6
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrDestOpt()
    / ROUTED
    / IPv6ExtHdrFragment(offset=0, m=0, id=5)
    / AH(nh=60, payloadlen=4, icv=b"123456789012")
    / IPv6ExtHdrDestOpt()
    / SYN,
}
"""How a SYN may come."""


def _with(frame: Packet, **fields: int) -> Packet:
    """A copy with these fields of its network header, whatever they should be."""
    frame = Ether(bytes(frame))
    for name, value in fields.items():
        setattr(frame[1], name, value)
    return frame


_MOBILE = V6 / Raw(bytes([6, 0, 1, 0, 0, 0, 0, 0]) + bytes(SYN))
_LONG = V4 / TCP(sport=40000, dport=PORT, flags="S") / Raw(bytes(32))
OTHERS: dict[str, tuple[bytes | Packet, str]] = {
    "vlan": (ETHER / Dot1Q(vlan=5) / IP(src=CLIENT_V4, dst=POD_V4) / SYN, "vlan"),
    "vlan of a provider": (ETHER / Dot1AD(vlan=5) / Dot1Q() / V4[1] / SYN, "vlan"),
    "v4 later fragment": (_with(V4 / SYN, frag=185), "fragment"),
    "v6 later fragment": (V6 / IPv6ExtHdrFragment(offset=2, nh=6) / bytes(SYN), "fragment"),
    "v4 of another version": (_with(V4 / SYN, version=5), "malformed"),
    "v6 of another version": (_with(V6 / SYN, version=4), "malformed"),
    "v4 header too short": (_with(V4 / SYN, ihl=4), "malformed"),
    "v4 longer than its frame": (_with(V4 / SYN, len=1000), "malformed"),
    "v6 longer than its frame": (_with(V6 / SYN, plen=1000), "malformed"),
    "v4 ends in the header": (_with(_LONG, len=20 + 19), "malformed"),
    "v6 ends in the header": (_with(V6 / SYN / Raw(bytes(32)), plen=19), "malformed"),
    "v4 options over the end": (_with(_LONG, ihl=15), "malformed"),
    "tcp header too short": (V4 / TCP(sport=1, dport=PORT, flags="S", dataofs=4), "malformed"),
    "v6 cut off in an extension": (bytes(V6 / IPv6ExtHdrHopByHop())[: 14 + 40 + 2], "malformed"),
    "v6 mobility": (_with(_MOBILE, nh=135), "unknown_header"),
    "v6 host identity": (_with(_MOBILE, nh=139), "unknown_header"),
    "v6 on its way": (
        V6 / IPv6ExtHdrRouting(type=2, segleft=1, addresses=["fd09::3"]) / SYN,
        "unknown_header",
    ),
    "v6 seven headers": (
        V6
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrDestOpt()
        / ROUTED
        / ROUTED
        / ROUTED
        / ROUTED
        / IPv6ExtHdrDestOpt()
        / SYN,
        "unknown_header",
    ),
    "v4 encrypted": (V4 / ESP(spi=1, seq=1, data=bytes(SYN)), ""),
    "v6 encrypted": (V6 / ESP(spi=1, seq=1, data=bytes(SYN)), ""),
    "icmp": (V4 / ICMP() / Raw(bytes(SYN)), ""),
    "icmp6": (V6 / ICMPv6EchoRequest(data=bytes(SYN)), ""),
    "arp": (ETHER / ARP(), ""),
    "udp to the same port": (V4 / UDP(sport=40000, dport=PORT) / Raw(bytes(32)), ""),
    "v6 udp": (V6 / UDP(sport=40000, dport=PORT) / Raw(bytes(32)), ""),
    "another port": (V4 / TCP(sport=40000, dport=PORT + 1, flags="S"), ""),
    "syn and ack": (V4 / TCP(sport=40000, dport=PORT, flags="SA"), ""),
    "a packet of an old connection": (
        V4 / TCP(sport=40000, dport=PORT, flags="PA") / Raw(b"x"),
        "",
    ),
    "a reset": (V4 / TCP(sport=40000, dport=PORT, flags="R"), ""),
}
"""What is not ours, and the counter that tells of it."""


@dataclass
class Rig:
    """A sleeping pod and its two programs."""

    pod: Pod
    group: int
    ingress: bpf.Program
    egress: bpf.Program

    def counted(self) -> dict[str, int]:
        return {name: count for name, count in self.pod.activator.counters().items() if count}

    def activator_port(self) -> int:
        """Where a SYN is sent."""
        return int(Ether(self.ingress.run(OPENER, ifindex=ETH0).frame)[TCP].dport)


@pytest.fixture
def rig(make_pod: Callable[..., Pod]) -> Iterator[Rig]:
    pod = make_pod()
    pod.here.run("ip", "link", "set", "eth0", "address", POD_MAC)
    group = pod.group()
    pod.activator.hold(group)
    found = bpf.programs(pod.here.fd)
    yield Rig(pod, group, found["zp_ingress"], found["zp_egress"])
    for program in found.values():
        program.close()


def _adds_up(frame: bytes, at: int, protocol: int) -> bool:
    """Whether the checksum of what begins there is right: as the receiver asks."""
    if frame[12:14] == b"\x08\x00":
        addresses, size = frame[26:34], int.from_bytes(frame[16:18]) + 14 - at
    else:
        addresses, size = frame[22:54], int.from_bytes(frame[18:20]) + 54 - at
    pseudo = b"" if protocol == 1 else addresses + struct.pack(">HH", protocol, size)
    return bool(checksum(pseudo + frame[at : at + size]) == 0)


def _tcp_adds_up(frame: bytes) -> bool:
    at = transport_of(frame)
    assert at is not None
    return _adds_up(frame, at, 6)


@pytest.mark.parametrize("way", WAYS)
def test_a_syn_is_sent_to_the_activator(rig: Rig, way: str) -> None:
    activator = rig.activator_port()
    frame = bytes(WAYS[way])
    result = rig.ingress.run(frame, ifindex=ETH0)
    at = transport_of(frame)
    assert at is not None and transport_of(result.frame) == at
    assert result.verdict == PASS
    assert int.from_bytes(result.frame[at + 2 : at + 4]) == activator
    assert _tcp_adds_up(frame) and _tcp_adds_up(result.frame)
    same = bytearray(result.frame)
    same[at + 2 : at + 4], same[at + 16 : at + 18] = (
        frame[at + 2 : at + 4],
        frame[at + 16 : at + 18],
    )
    assert bytes(same) == frame
    assert rig.counted() == {"redirected": 2}


def test_the_first_fragment_of_a_datagram_is_treated_as_if_it_were_whole(rig: Rig) -> None:
    """Its checksum is that of the whole, and is right when the kernel has put all together."""
    whole = ETHER / IP(src=CLIENT_V4, dst=POD_V4, id=9) / SYN / Raw(bytes(range(200)) * 5)
    whole = Ether(bytes(whole))
    first, *later = (IP(bytes(packet)) for packet in fragment(whole[IP], 600))
    result = rig.ingress.run(bytes(ETHER / first), ifindex=ETH0)
    changed = Ether(result.frame)
    assert changed[IP].flags == "MF" and changed[TCP].dport == rig.activator_port()
    segment = bytes(changed[TCP])[: first[IP].len - 20] + b"".join(bytes(p.payload) for p in later)
    again = ETHER / IP(src=CLIENT_V4, dst=POD_V4, proto=6) / Raw(segment)
    assert _tcp_adds_up(bytes(again))
    for packet in later:
        frame = bytes(ETHER / packet)
        assert rig.ingress.run(frame, ifindex=ETH0)[:2] == (PASS, frame)
    assert rig.counted()["fragment"] == len(later)


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_not_ours_passes_as_it_is(rig: Rig, other: str) -> None:
    frame, counter = OTHERS[other]
    for program in (rig.ingress, rig.egress):
        assert program.run(bytes(frame), ifindex=ETH0)[:2] == (PASS, bytes(frame))
    assert rig.counted() == ({counter: 2} if counter else {})


@pytest.mark.parametrize("address", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "02:00:00:00:00:09"])
def test_a_frame_that_is_not_the_pods_passes(rig: Rig, address: str) -> None:
    frame = bytes(Ether(src="02:00:00:00:00:01", dst=address) / V4[IP] / SYN)
    assert rig.ingress.run(frame, ifindex=ETH0)[:2] == (PASS, frame)
    assert rig.counted() == {}


def test_what_the_pod_forwards_passes(rig: Rig) -> None:
    """It may be a gateway, too."""
    sysctl = (
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
    )
    rig.pod.here.run("sh", "-c", sysctl)
    rig.pod.here.run("ip", "route", "add", "10.20.0.0/16", "via", CLIENT_V4)
    rig.pod.here.run("ip", "route", "add", "fd20::/16", "via", CLIENT_V6)
    for there in (
        ETHER / IP(src="10.9.0.7", dst="10.20.0.1") / SYN,
        ETHER / IPv6(src="fd09::7", dst="fd20::1") / SYN,
    ):
        frame = bytes(there)
        assert rig.ingress.run(frame, ifindex=ETH0)[:2] == (PASS, frame)
    assert rig.counted() == {"forwarded": 2}
    for way in ("v4", "v6"):
        assert rig.ingress.run(bytes(WAYS[way]), ifindex=ETH0).frame != bytes(WAYS[way])


def test_an_answer_of_the_activator_gets_the_apps_port(rig: Rig) -> None:
    activator = rig.activator_port()
    for network in (IP(src=POD_V4, dst=CLIENT_V4), IPv6(src=POD_V6, dst=CLIENT_V6)):
        frame = bytes(ETHER / network / TCP(sport=activator, dport=40000, flags="SA"))
        result = rig.egress.run(frame, ifindex=ETH0)
        assert result.verdict == PASS
        assert Ether(result.frame)[TCP].sport == PORT
        assert _tcp_adds_up(result.frame)


QUOTES = {
    "v4": (V4, IP(src=POD_V4, dst=CLIENT_V4), ICMP(type=3, code=4, nexthopmtu=1300)),
    "v4 options": (
        ETHER / IP(src=CLIENT_V4, dst=POD_V4, options=[IPOption_Router_Alert()]),
        IP(src=POD_V4, dst=CLIENT_V4, options=[IPOption_Router_Alert()]),
        ICMP(type=11, code=0),
    ),
    "v6": (V6, IPv6(src=POD_V6, dst=CLIENT_V6), ICMPv6PacketTooBig(mtu=1300)),
}
"""An error, and what it is about."""


@pytest.mark.parametrize("quote", QUOTES)
def test_an_error_about_an_answer_reaches_the_activator(rig: Rig, quote: str) -> None:
    outer, inner, error = QUOTES[quote]
    frame = bytes(outer / error / inner / TCP(sport=PORT, dport=40000, flags="A", seq=9))
    assert rig.ingress.run(frame, ifindex=ETH0)[:2] == (PASS, frame), "the app's own"
    rig.ingress.run(bytes(WAYS[quote[:2]]), ifindex=ETH0)

    result = rig.ingress.run(frame, ifindex=ETH0)

    assert result.verdict == PASS
    at, quoted = len(bytes(outer)), len(bytes(outer / error / inner))
    activator = rig.activator_port().to_bytes(2)
    assert result.frame[quoted:] == activator + frame[quoted + 2 :]
    protocol = 1 if ICMP in outer / error else 58
    assert _adds_up(frame, at, protocol) and _adds_up(result.frame, at, protocol)
    same = bytearray(result.frame)
    for place in (at + 2, quoted):
        same[place : place + 2] = frame[place : place + 2]
    assert bytes(same) == frame
    assert rig.counted()["error_in"] == 1


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_a_held_connection_is_told_what_is_too_big(
    make_pod: Callable[..., Pod], wire: tuple[Namespace, Namespace], version: str
) -> None:
    """The kernel finds the activator's socket by what the error quotes."""
    here, _ = wire
    far, near = tun.V4 if version == "v4" else tun.V6
    network = IP if version == "v4" else IPv6
    with tun.device(here, "tun0") as fd:
        pod = make_pod()
        pod.activator.hold(pod.group())
        there, back = network(src=far, dst=near), network(src=near, dst=far)
        agreed = tun.answer(fd, there / SYN)
        ours = TCP(sport=40000, dport=PORT, flags="A", seq=8, ack=agreed.seq + 1)
        os.write(fd, bytes(there / ours))
        pod.wait(EventKind.PENDING)
        error = (
            ICMP(type=3, code=4, nexthopmtu=1290)
            if version == "v4"
            else ICMPv6PacketTooBig(mtu=1290)
        )
        quoted = back / TCP(sport=PORT, dport=40000, flags="A", seq=agreed.seq + 1)
        os.write(fd, bytes(there / error / quoted))

        def told() -> bool:
            return "mtu 1290" in here.ask("ip", "route", "get", far)

        waiting.until("the path's MTU", told)


def test_the_activators_own_port_is_reached_by_nobody(rig: Rig) -> None:
    frame = bytes(V4 / TCP(sport=40000, dport=rig.activator_port(), flags="S"))
    assert rig.ingress.run(frame, ifindex=ETH0).verdict == DROP
    datagram = bytes(V4 / UDP(sport=40000, dport=rig.activator_port()))
    assert rig.ingress.run(datagram, ifindex=ETH0).verdict == PASS
    assert rig.counted()["direct_dropped"] == 1


def test_a_padded_acknowledgement_is_no_activity(rig: Rig) -> None:
    """The least that Ethernet carries is 60 bytes: behind a bare ACK is padding."""
    rig.ingress.run(bytes(WAYS["v4"]), ifindex=ETH0)
    before = rig.pod.activator.last_activity_ns(rig.group)
    bare = TCP(sport=40000, dport=PORT, flags="A", seq=8, ack=1)
    rig.ingress.run(bytes(V4 / bare).ljust(60, b"\0"), ifindex=ETH0)
    assert rig.pod.activator.last_activity_ns(rig.group) == before
    rig.ingress.run(bytes(V4 / bare / Raw(b"x")), ifindex=ETH0)
    assert rig.pod.activator.last_activity_ns(rig.group) > before
    assert rig.counted()["flow_in"] == 2


# random frames


def transport_of(frame: bytes) -> int | None:
    """Where the TCP header of a frame is that is wholly understood and is for the pod."""
    if frame[:6] != bytes.fromhex(POD_MAC.replace(":", "")):
        return None
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and len(packet) >= 20 and packet[0] >> 4 == 4:
        size, offset = int.from_bytes(packet[2:4]), int.from_bytes(packet[6:8]) & 0x1FFF
        header, protocol = (packet[0] & 15) * 4, packet[9]
        if header < 20 or offset:
            return None
    elif kind == b"\x86\xdd" and len(packet) >= 40 and packet[0] >> 4 == 6:
        size = int.from_bytes(packet[4:6])
        size = size and size + 40
        header, protocol, followed = 40, packet[6], 0
        while protocol in (0, 43, 44, 51, 60):
            extension = packet[header : header + 4]
            followed += 1
            if len(extension) < 4 or followed > 6:
                return None
            if protocol == 44 and int.from_bytes(extension[2:4]) >> 3:
                return None
            if protocol == 43 and extension[3]:
                return None
            units = {44: 8, 51: (extension[1] + 2) * 4}
            header += units.get(protocol, (extension[1] + 1) * 8)
            protocol = extension[0]
    else:
        return None
    end = size or len(packet)
    if protocol != 6 or end > len(packet) or header + 20 > end or packet[header + 12] >> 4 < 5:
        return None
    return 14 + header


def _flow(frame: bytes, at: int) -> bytes:
    addresses = frame[26:34] if frame[12:14] == b"\x08\x00" else frame[22:54]
    return addresses + frame[at : at + 4]


SEEDS = [bytes(frame) for frame in WAYS.values()] + [bytes(frame) for frame, _ in OTHERS.values()]


def frames() -> Iterator[tuple[str, bytes]]:
    """Mutations of what there is above, and noise; each with what it can be made again by."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    for number in range(20_000):
        if dice.random() < 0.1:
            frame = bytearray(dice.randbytes(dice.randint(15, 200)))
        else:
            frame = bytearray(dice.choice(SEEDS))
            for _ in range(dice.choice([0, 1, 1, 2, 3])):
                frame[dice.randrange(12, min(len(frame), 110))] = dice.randrange(256)
            if dice.random() < 0.1:
                del frame[dice.randint(15, len(frame)) :]
        yield f"frame {number} of seed {seed}", bytes(frame)


def test_no_frame_is_changed_that_is_not_ours(rig: Rig) -> None:
    activator = rig.activator_port()
    opened = {_flow(OPENER, 34)}
    ours = 0
    for name, frame in frames():
        try:
            result = rig.ingress.run(frame, ifindex=ETH0)
        except OSError:  # the kernel does not make a packet of it
            continue
        at = transport_of(frame)
        port, flags = (frame[at + 2 : at + 4], frame[at + 13]) if at is not None else (b"", 0)
        if at is not None and int.from_bytes(port) == activator:
            assert result[:2] == (DROP, frame), name
            continue
        if at is None or int.from_bytes(port) != PORT:
            assert result[:2] == (PASS, frame), name
            continue
        if flags & 0x12 != 0x02 and _flow(frame, at) not in opened:
            assert result[:2] == (PASS, frame), name
            continue
        ours += 1
        opened.add(_flow(frame, at))
        expected = bytearray(frame)
        expected[at + 2 : at + 4] = activator.to_bytes(2)
        sums = [int.from_bytes(whole[at + 16 : at + 18]) for whole in (frame, result.frame)]
        expected[at + 16 : at + 18] = result.frame[at + 16 : at + 18]
        assert result[:2] == (PASS, bytes(expected)), name
        # What the port adds to the sum, the checksum takes away, in one's complement.
        assert ((sums[0] - sums[1]) - (activator - PORT)) % 0xFFFF == 0, name
    assert ours > 2000


def test_no_answer_is_changed_that_is_not_the_activators(rig: Rig) -> None:
    activator = rig.activator_port()
    answers = 0
    for name, mutation in frames():
        frame, at = mutation, transport_of(mutation)
        if at is not None and not answers % 2:
            frame = frame[:at] + activator.to_bytes(2) + frame[at + 2 :]
        try:
            result = rig.egress.run(frame, ifindex=ETH0)
        except OSError:
            continue
        answers += at is not None
        if at is None or int.from_bytes(frame[at : at + 2]) != activator:
            assert result[:2] == (PASS, frame), name
            continue
        expected = bytearray(frame)
        expected[at : at + 2] = PORT.to_bytes(2)
        expected[at + 16 : at + 18] = result.frame[at + 16 : at + 18]
        assert result[:2] == (PASS, bytes(expected)), name
    assert answers > 2000
