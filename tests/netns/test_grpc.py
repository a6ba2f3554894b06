"""gRPC from the node: health checks are answered asleep and do not count awake; users are served.

The client's namespace is the node's here. grpcio is client and server: its server ends a connection
on which an ACK comes that it has not asked for. A kubelet's client is replayed: preface and
SETTINGS, then nothing until it has the server's.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hpack import Encoder

from lab import waiting
from tests.netns import bpf
from tests.netns.conftest import POD_V4, POD_V6, PORT, Namespace, Pod
from tests.netns.test_awake_probes import counts
from tests.netns.test_wake import read_all
from zeropod._fastpath._activator import Cause, EventKind, RestorePlan

RPC = Path(__file__).with_name("rpc.py")
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
NEXT = "/test.Counter/Next"
SERVING = "0801"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACKED = 1, 4, 1


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: str) -> bytes:
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", f"{POD_V4}:{PORT}"),
        ("content-type", "application/grpc"),
        ("user-agent", "kube-probe/1.31 grpc-go/1.65.0"),
        ("te", "trailers"),
        ("grpc-timeout", "998m"),
    ]
    return frame(HEADERS, END_HEADERS, 1, Encoder().encode(fields, huffman=True))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GREETING = PREFACE + frame(SETTINGS)
ACK = frame(SETTINGS, ACKED)
MESSAGE = frame(DATA, END_STREAM, 1, b"\0\0\0\0\0")
CALL = ACK + headers(CHECK) + MESSAGE


@pytest.fixture
def pod(make_pod: Callable[..., Pod], wire: tuple[Namespace, Namespace]) -> Pod:
    with bpf.inside(wire[1].fd):
        return make_pod()


def asleep(pod: Pod, **options: object) -> int:
    """A gRPC server that sleeps."""
    group = pod.group(**options)
    plan = RestorePlan(
        [sys.executable, "-I", str(RPC), "serve", str(PORT), "ready", "starts"],
        env={},
        cwd=str(pod.folder),
        stdio=(-1, 2, 2),
        setns=[pod.here.fd],
        ready_path=pod.folder / "ready",
    )
    pod.plans.append(plan)
    pod.activator.hold(group)
    assert pod.activator.arm(group, plan) is False
    return group


@pytest.fixture
def awake(pod: Pod) -> Pod:
    pod.activator.wake(asleep(pod))
    pod.wait(EventKind.READY)
    return pod


def call(origin: Namespace, host: str, *paths: str) -> list[str]:
    """What a real client hears, over one connection."""
    return origin.ask(sys.executable, "-I", str(RPC), "call", host, str(PORT), *paths).split()


@contextmanager
def kubelet(pod: Pod) -> Iterator[socket.socket]:
    """A connection on which the server has sent its SETTINGS."""
    with pod.client.connect(POD_V4) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(PREFACE)  # as grpc-go does: by itself
        made.sendall(frame(SETTINGS))
        kind, _, _ = next(frames(made))
        assert kind == SETTINGS
        yield made


def frames(made: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Kind, flags and payload."""
    with made.makefile("rb") as stream:
        while head := stream.read(9):
            yield head[3], head[4], stream.read(int.from_bytes(head[:3]))


def is_serving(made: socket.socket) -> bool:
    """Whether the rest of an answer says so, and ends the connection."""
    seen = [(kind, payload) for kind, flags, payload in frames(made) if kind in (DATA, GOAWAY)]
    return seen == [(DATA, b"\0\0\0\0\2\x08\1"), (GOAWAY, b"\0\0\0\1\0\0\0\0")]


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_a_health_check_is_answered_asleep(pod: Pod, host: str) -> None:
    group = asleep(pod)
    for _ in range(3):
        assert call(pod.client, host, CHECK) == [SERVING]
    assert pod.activator.stats(group)["wakes"] == 0
    assert pod.activator.stats(group)["probes"] >= 3
    assert pod.starts == 0


def test_a_kubelets_check_at_every_split(pod: Pod) -> None:
    """Whatever segments its call comes in; and one for which nobody has to be greeted."""
    group = asleep(pod)
    for at in range(1, len(CALL)):
        with kubelet(pod) as made:
            made.sendall(CALL[:at])
            made.sendall(CALL[at:])
            assert is_serving(made), at
    with pod.client.connect(POD_V4) as made:
        made.sendall(GREETING + headers(CHECK) + MESSAGE)
        assert is_serving(made)
    stats = pod.activator.stats(group)
    assert (stats["probes"], stats["wakes"], stats["connections"]) == (len(CALL), 0, 0)


def test_another_call_on_a_probes_connection_is_not_lost(pod: Pod) -> None:
    """Its client is told that nobody has seen it, and makes a connection that wakes."""
    asleep(pod)
    checked, following = call(pod.client, POD_V4, CHECK, NEXT)
    assert checked == SERVING
    assert bytes.fromhex(following).split()[1] == b"1"


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_a_users_call_wakes_and_is_answered(pod: Pod, host: str) -> None:
    """By the app itself, over the connection that has woken it: there it sees a local address."""
    group = asleep(pod)
    first, second = (
        bytes.fromhex(answer).decode().split() for answer in call(pod.client, host, NEXT, NEXT)
    )
    assert (first[0], first[1], second[1]) == (second[0], "1", "2")
    local = f"ipv6:%5B{host}%5D:" if ":" in host else f"ipv4:{host}:"
    assert first[2] == second[2] and first[2].startswith(local)
    stats = pod.activator.stats(group)
    assert (stats["wakes"], stats["spliced"], stats["probes"]) == (1, 1, 0)
    boot, count, _ = bytes.fromhex(call(pod.client, host, NEXT)[0]).decode().split()
    assert (boot, count) == (first[0], "3")


def test_the_server_would_refuse_the_ack(awake: Pod) -> None:
    """What the test above rests on: one more than it has sent SETTINGS ends the connection."""
    with awake.client.connect(POD_V4) as made:
        made.sendall(GREETING + ACK + ACK)
        read_all(made)


def test_watch_wakes(pod: Pod) -> None:
    group = asleep(pod)
    with kubelet(pod) as made:
        made.sendall(ACK + headers(WATCH) + MESSAGE)
        assert pod.wait(EventKind.FIRED).value == Cause.CONNECTION
        next(part for part in frames(made) if part[0] == HEADERS)  # of the app: not implemented
    assert pod.activator.stats(group)["spliced"] == 1


def test_who_says_no_more_wakes(pod: Pod) -> None:
    """Its next call, much later, is answered by the app."""
    asleep(pod)
    with kubelet(pod) as made:
        made.sendall(ACK)
        pod.wait(EventKind.READY)
        made.sendall(headers(NEXT) + MESSAGE)
        message = next(payload for kind, _, payload in frames(made) if kind == DATA)
        assert message[5:].split()[1] == b"1"


@pytest.mark.parametrize("detection", [True, False])
def test_only_the_node_is_greeted(
    make_pod: Callable[..., Pod], detection: bool, wire: tuple[Namespace, Namespace]
) -> None:
    """From elsewhere, or without detection, a check is a user's."""
    if detection:
        pod = make_pod()
    else:
        with bpf.inside(wire[1].fd):
            pod = make_pod()
    group = asleep(pod, probe_detection=detection)
    assert call(pod.client, POD_V4, CHECK) == [SERVING]
    assert pod.starts == 1
    assert pod.activator.stats(group)["probes"] == 0


def test_tls_from_the_node_is_told_apart(pod: Pod) -> None:
    """It wakes, for it may be a user; that nobody else was there is said."""
    group = pod.asleep("sink")
    with pod.client.connect(POD_V4) as made:
        made.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xfc")
        made.shutdown(socket.SHUT_WR)
        assert read_all(made).startswith(b"10 ")
    assert pod.wait(EventKind.FIRED).value == Cause.TLS
    assert pod.activator.stats(group)["tls_wakes"] == 1


def test_tls_beside_a_user_is_not(pod: Pod) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with pod.client.connect(POD_V4) as tls, pod.client.connect(POD_V4) as user:
        tls.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xfc")
        user.sendall(b"hello")
        waiting.until("both", lambda: pod.activator.stats(group)["held"] == 2)
        assert pod.activator.arm(group, pod.plan("sink")) is True
        assert pod.wait(EventKind.FIRED).value == Cause.CONNECTION
    assert pod.activator.stats(group)["tls_wakes"] == 0


def test_awake_a_health_check_does_not_count(awake: Pod) -> None:
    for number in range(1, 4):
        assert not counts(awake, lambda: call(awake.client, POD_V4, CHECK))
        assert awake.activator.stats(0)["probes_awake"] == number
    waiting.until("their end", lambda: awake.activator.last_undecided_ns(0) == 0)
    assert counts(awake, lambda: call(awake.client, POD_V4, NEXT))


@pytest.mark.parametrize(
    "pieces",
    [
        [ACK, headers(CHECK), MESSAGE],
        [ACK + headers(CHECK), MESSAGE],
        [
            ACK,
            frame(PING, 0, 0, b"12345678"),
            headers(CHECK) + MESSAGE,
            frame(PING, 1, 0, b"x" * 8),
        ],
    ],
    ids=["each", "two", "with pings"],
)
def test_awake_a_kubelets_check_in_segments(awake: Pod, pieces: list[bytes]) -> None:
    def probe() -> None:
        with kubelet(awake) as made:
            for piece in pieces:
                made.sendall(piece)
                wait_acked(made)
            assert (
                next(payload for kind, _, payload in frames(made) if kind == DATA)[5:] == b"\x08\1"
            )

    assert not counts(awake, probe)
    assert awake.activator.stats(0)["probes_awake"] == 1


def test_awake_segments_that_follow_at_once_are_the_probes(awake: Pod) -> None:
    """The ring may hold the next one when the first has told what it is."""

    def probes() -> None:
        for _ in range(100):
            with kubelet(awake) as made:
                for piece in (ACK, headers(CHECK), MESSAGE):
                    made.sendall(piece)
                next(part for part in frames(made) if part[0] == DATA)

    assert not counts(awake, probes)
    assert awake.activator.stats(0)["probes_awake"] == 100


@pytest.mark.parametrize(
    "pieces",
    [
        [ACK + headers(NEXT) + MESSAGE],
        [ACK, headers(NEXT), MESSAGE],
        [ACK + headers(WATCH) + MESSAGE],
        [ACK, headers(CHECK)[:20], headers(CHECK)[20:] + MESSAGE],
        [ACK] + [frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1")] * 8 + [headers(CHECK) + MESSAGE],
    ],
    ids=["user", "in segments", "watch", "a frame in two", "too many"],
)
def test_awake_other_calls_count(awake: Pod, pieces: list[bytes]) -> None:
    """Also what cannot be read, or comes too late."""

    def speak() -> None:
        with kubelet(awake) as made:
            for piece in pieces:
                made.sendall(piece)
                wait_acked(made)
            next(part for part in frames(made) if part[0] == HEADERS)

    assert counts(awake, speak)
    assert awake.activator.stats(0)["probes_awake"] == 0


def wait_acked(made: socket.socket) -> None:
    """What follows is in a segment of its own."""

    def is_acked() -> bool:
        info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return struct.unpack_from("I", info, 24)[0] == 0  # tcpi_unacked

    waiting.until("its acknowledgement", is_acked, interval=0.001)


def test_awake_who_has_not_called_yet_is_known(awake: Pod) -> None:
    """He does not count; a dump waits a second for him."""
    with kubelet(awake) as made:
        before = time.monotonic_ns()
        made.sendall(ACK)
        waiting.until("it", lambda: awake.activator.last_undecided_ns(0) > before)
        made.sendall(headers(NEXT) + MESSAGE)
        next(part for part in frames(made) if part[0] == DATA)
        assert awake.activator.last_undecided_ns(0) == 0
