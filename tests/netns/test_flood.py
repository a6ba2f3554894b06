"""Packets that nobody's connection sends: floods, retransmissions, a tuple used again."""

from __future__ import annotations

import random
import resource
import select
import socket
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lab import waiting
from tests.netns.conftest import CLIENT_V4, POD_V4, PORT, Pod
from tests.netns.test_wake import ask
from zeropod._fastpath._activator import Activation, EventKind
from zeropod._fastpath._netns import socket_in

SYN = 0x02
STRANGER = "10.9.0.77"  # nobody answers for it, so nobody resets what the pod answers


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source: str, port: int, sequence: int) -> bytes:
    """An IPv4 packet; the kernel fills in the header's checksum."""
    addresses = socket.inet_aton(source) + socket.inet_aton(POD_V4)
    tcp = struct.pack("!HHIIBBHHH", port, PORT, sequence, 0, 5 << 4, SYN, 1024, 0, 0)
    check = checksum(addresses + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0)
    return head + addresses + tcp


def raw(pod: Pod) -> socket.socket:
    made = socket_in(pod.client.fd, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    return socket.socket(fileno=made)


def test_a_flood_of_syns_keeps_nobody_out(pod: Pod) -> None:
    pod.here.run("sysctl", "-qw", "net.ipv4.tcp_syncookies=1")
    group = pod.group()
    pod.activator.hold(group)
    before = pod.client.connect(POD_V4)
    pod.wait(EventKind.PENDING)
    with raw(pod) as made:
        for port in range(1024, 65536):
            made.sendto(syn(STRANGER, port, port), (POD_V4, 0))
            if port % 256 == 0 and pod.activator.counters()["redirected"] > 9000:
                break  # several times what is remembered
    counters = pod.activator.counters()
    assert counters["redirected"] > 9000
    assert counters["flows_full"] == 0
    after = pod.client.connect(POD_V4)
    assert pod.activator.stats(group)["wakes"] == 0
    assert pod.activator.arm(group, pod.plan("http")) is True
    assert ask(before).startswith(b"HTTP/1.1 200")
    assert ask(after).startswith(b"HTTP/1.1 200")
    assert pod.starts == 1


def test_a_retransmitted_syn_stays_with_its_connection(pod: Pod) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with raw(pod) as made, pod.here.listen(PORT):

        def send(sequence: int) -> dict[str, int]:
            made.sendto(syn(STRANGER, 5000, sequence), (POD_V4, 0))
            return pod.activator.counters()

        assert send(1)["redirected"] == 1
        pod.activator.awake(group)
        pod.wait_ready()
        counters = send(1)
        assert counters["redirected"] == 1
        assert counters["flow_in"] == 1
        assert counters["flow_forgotten"] == 0
        # Another connection between the same ports is the app's.
        counters = send(2)
        assert counters["flow_in"] == 1
        assert counters["flow_forgotten"] == 1
        assert send(2)["flow_in"] == 1


def test_an_awake_app_is_not_in_use_for_who_only_knocks(pod: Pod) -> None:
    group = pod.group()
    with raw(pod) as made, pod.here.listen(PORT):
        last_ns = 0
        for source in (STRANGER, CLIENT_V4):  # the second one's kernel resets what it is answered
            made.sendto(syn(source, 5000, 1), (POD_V4, 0))
            assert pod.activator.last_undecided_ns(group) > last_ns
            last_ns = pod.activator.last_undecided_ns(group)
        assert pod.activator.last_activity_ns(group) == 0
        with pod.client.connect(POD_V4):
            assert pod.activator.last_activity_ns(group) > last_ns


def test_a_tuple_that_is_used_again(pod: Pod) -> None:
    """Closed asleep and opened again from the same port at once: asleep, and then awake."""
    group = pod.asleep("http")
    for turn in range(3):
        made = pod.client.make_socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.bind((CLIENT_V4, 40000))
        made.connect((POD_V4, PORT))
        if turn == 0:
            made.close()
            continue
        made.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert made.recv(4096).startswith(b"HTTP/1.1 200")
        made.close()
        if turn == 1:
            pod.wait_ready()
    assert pod.activator.stats(group)["spliced"] == 1
    assert pod.starts == 1


def test_a_forged_syn_does_not_end_a_connection(pod: Pod) -> None:
    """Of the same ports as one that was accepted, and with another sequence number."""
    pod.asleep("banner")
    with pod.client.connect(POD_V4) as made, raw(pod) as forger:
        lines = made.makefile("rb")
        assert lines.readline() == b"220 ready\r\n"
        pod.wait_ready()
        forger.sendto(syn(CLIENT_V4, made.getsockname()[1], 4711), (POD_V4, 0))
        made.sendall(b"still here\r\n")
        assert lines.read() == b"still here\r\n"
        lines.close()
    assert pod.activator.counters()["flow_forgotten"] == 0


def test_wakes_that_nobody_completes_end_the_parking_for_a_while(pod: Pod) -> None:
    """Whoever forges SYNs wakes the pod twice; then it is for those who complete a handshake."""
    group = pod.group(activation=Activation.PARK)
    with raw(pod) as made:
        for wakes in (1, 2):
            pod.activator.hold(group)
            assert pod.activator.arm(group, pod.plan("http")) is False
            made.sendto(syn(STRANGER, 1024, wakes), (POD_V4, 0))
            pod.wait(EventKind.READY)
            bare = f"bare wake-up {wakes}"
            waiting.until(bare, lambda: pod.activator.stats(group)["bare_wakes"] == wakes)  # noqa: B023
            pod.kill_app()
            (pod.folder / "ready").unlink()
        pod.activator.hold(group)
        assert pod.activator.arm(group, pod.plan("http")) is False
        made.sendto(syn(STRANGER, 1024, 3), (POD_V4, 0))
        waiting.until("the SYN", lambda: pod.activator.counters()["redirected"] == 1)
    assert pod.activator.stats(group)["wakes"] == 2
    assert ask(pod.client.connect(POD_V4)).startswith(b"HTTP/1.1 200")
    stats = pod.activator.stats(group)
    assert (stats["wakes"], stats["spliced"], stats["parked"]) == (3, 1, 2)


def strangers(seed: int) -> Iterator[bytes]:
    """SYNs of whoever: of other networks, to which the pod's answers have a way."""
    dice = random.Random(seed)
    while True:
        source = f"172.{dice.randrange(16, 32)}.{dice.randrange(256)}.{dice.randrange(1, 255)}"
        yield syn(source, dice.randrange(1024, 65536), dice.randrange(2**32))


def memory_bytes() -> int:
    """What this process, in which the activator is, has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_hundred_thousand_strangers(pod: Pod) -> None:
    """They wake the pod twice, and nobody else; whoever is there is served at any time.

    The first two wake-ups are seen to be nobody's three seconds later. Then openers are accepted
    first, and of the strangers nobody completes a handshake.
    """
    pod.here.run("ip", "route", "add", "default", "via", CLIENT_V4)
    pod.here.run("sysctl", "-qw", "net.ipv4.tcp_syncookies=1")
    group = pod.group(activation=Activation.PARK)
    crowd = strangers(seed=5)
    most = {"held": 0}
    sent = 0

    def flood(made: socket.socket, count: int) -> None:
        nonlocal sent
        for number, packet in enumerate(islice(crowd, count)):
            made.sendto(packet, (POD_V4, 0))
            if number % 256 == 0:
                most["held"] = max(most["held"], pod.activator.stats(group)["held"])
        sent += count

    def sleep() -> None:
        pod.activator.hold(group)
        pod.kill_app()
        (pod.folder / "ready").unlink(missing_ok=True)

    def bare_wakes() -> int:
        return pod.activator.stats(group)["bare_wakes"]

    before = memory_bytes()
    with raw(pod) as made:
        for wakes in (1, 2):
            sleep()
            flood(made, 20_000)  # in the middle of a dump: many more than are kept
            assert pod.activator.arm(group, pod.plan("http")) is True
            pod.wait(EventKind.READY)
            flood(made, 5_000)  # to the app itself
            waiting.until("a bare wake-up", lambda: bare_wakes() == wakes)  # noqa: B023
        sleep()
        assert pod.activator.arm(group, pod.plan("http")) is False
        flood(made, 40_000)
        assert pod.activator.stats(group)["wakes"] == 2
        assert ask(pod.client.connect(POD_V4)).startswith(b"HTTP/1.1 200")
        pod.wait(EventKind.READY)
        flood(made, 10_000)
        assert ask(pod.client.connect(POD_V4)).startswith(b"HTTP/1.1 200")
    stats, counters = pod.activator.stats(group), pod.activator.counters()
    grown = memory_bytes() - before
    print(f"{sent} SYNs, {grown >> 10} KiB more, {most['held']} held at most; {stats}; {counters}")
    assert sent == 100_000
    assert (stats["wakes"], stats["bare_wakes"], stats["spliced"]) == (3, 2, 1)
    assert most["held"] <= 2048
    assert counters["parked"] + counters["parked_full"] + counters["redirected"] > 60_000
    assert counters["flows_full"] == 0
    assert grown < 8 << 20


def test_a_user_among_strangers_is_served(pod: Pod) -> None:
    """Parked behind hundreds whose handshakes never end, in a queue that is too short for them."""
    pod.here.run("ip", "route", "add", "default", "via", CLIENT_V4)
    group = pod.group(activation=Activation.PARK)
    pod.activator.hold(group)
    with raw(pod) as made:
        for packet in islice(strangers(seed=6), 500):
            made.sendto(packet, (POD_V4, 0))
        kept = pod.activator.counters()["parked"]  # the ring may have had no room for some
        assert kept > 200
        waiting.until("all", lambda: pod.activator.stats(group)["held"] == kept)
        with pod.client.make_socket() as user:
            user.setblocking(False)
            user.connect_ex((POD_V4, PORT))
            waiting.until("the user", lambda: pod.activator.stats(group)["held"] == kept + 1)
            assert pod.activator.arm(group, pod.plan("http")) is True
            assert select.select([], [user], [], 60)[1], "the user is not connected"
            user.settimeout(60)
            assert ask(user).startswith(b"HTTP/1.1 200")
    assert pod.activator.stats(group)["wakes"] == 1


def test_a_completed_handshake_is_no_bare_wake(pod: Pod) -> None:
    group = pod.group(activation=Activation.PARK)
    for _ in range(4):
        pod.activator.hold(group)
        assert pod.activator.arm(group, pod.plan("http")) is False
        assert ask(pod.client.connect(POD_V4)).startswith(b"HTTP/1.1 200")
        pod.wait(EventKind.READY)
        pod.kill_app()
        (pod.folder / "ready").unlink()
    stats = pod.activator.stats(group)
    assert (stats["parked"], stats["bare_wakes"]) == (4, 0)
