"""The frames that the BPF programs are measured with, read by a library."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from benchmarks.packet import End, frame


@pytest.mark.parametrize(
    ("addresses", "network"),
    [(("10.88.0.7", "10.88.0.2"), IP), (("fd00:88::7", "fd00:88::2"), IPv6)],
)
def test_a_frame_is_a_segment_with_data(
    addresses: tuple[str, str], network: type[IP] | type[IPv6]
) -> None:
    source, dest = (
        End(bytes([2, 0, 0, 0, 0, number]), address, port)
        for number, address, port in zip((1, 2), addresses, (40000, 80), strict=True)
    )
    found = Ether(frame(source, dest))
    assert (found.src, found.dst) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    assert (found[network].src, found[network].dst) == addresses
    assert (found[TCP].sport, found[TCP].dport, found[TCP].flags) == (40000, 80, "PA")
    assert bytes(found[TCP].payload) == b"x"
    length = found[IP].len if network is IP else found[IPv6].plen + 40
    assert length == len(found) - 14
