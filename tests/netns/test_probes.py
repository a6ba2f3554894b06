"""A kubelet's probes are answered while the app sleeps, and wake nothing."""

from __future__ import annotations

import socket
import statistics
import struct
import time

import pytest

from tests.netns.conftest import POD_V4, POD_V6, Pod
from tests.netns.test_wake import PROBE, ask, read_all
from zeropod._fastpath._activator import EventKind


@pytest.mark.parametrize("host", [POD_V4, POD_V6])
def test_http_probes_are_answered_and_wake_nothing(node_pod: Pod, host: str) -> None:
    group = node_pod.asleep("http")
    took = []
    for _ in range(50):
        started = time.perf_counter()
        answer = ask(node_pod.client.connect(host), PROBE)
        took.append((time.perf_counter() - started) * 1e3)
        assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
    print(f"probe: median {statistics.median(took):.2f} ms, max {max(took):.2f} ms")
    assert statistics.median(took) < 1000, "the patience of a kubelet"
    assert node_pod.activator.stats(group)["probes"] == 50
    assert not [event for event in node_pod.take_events() if event.kind == EventKind.FIRED]
    assert ask(node_pod.client.connect(host)).startswith(b"HTTP/1.1 200")


def test_a_probe_in_pieces(node_pod: Pod) -> None:
    group = node_pod.asleep("http")
    with node_pod.client.connect(POD_V4) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(PROBE)):
            made.sendall(PROBE[at : at + 1])
        assert read_all(made).startswith(b"HTTP/1.1 204")
    assert node_pod.activator.stats(group)["wakes"] == 0


def test_tcp_probes_wake_nothing(node_pod: Pod) -> None:
    group = node_pod.asleep("http")
    for _ in range(20):
        node_pod.client.connect(POD_V4).close()
    with node_pod.client.connect(POD_V4) as made:  # and one that resets
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # An HTTP probe behind them: when it has its answer, they have been seen.
    assert ask(node_pod.client.connect(POD_V4), PROBE).startswith(b"HTTP/1.1 204")
    assert node_pod.activator.stats(group)["wakes"] == 0
    assert node_pod.starts == 0


def test_probes_are_users_where_detection_is_off(node_pod: Pod) -> None:
    node_pod.asleep("http", probe_detection=False)
    assert ask(node_pod.client.connect(POD_V4), PROBE).startswith(b"HTTP/1.1 200")
    assert node_pod.wait(EventKind.FIRED)


def test_who_is_not_of_the_node_is_a_user_whatever_he_says(pod: Pod) -> None:
    group = pod.asleep("http")
    assert ask(pod.client.connect(POD_V4), PROBE).startswith(b"HTTP/1.1 200")
    assert pod.activator.stats(group)["probes"] == 0
