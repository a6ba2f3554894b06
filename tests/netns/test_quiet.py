"""Connections over which nothing is said: they keep nobody awake, and their end is noticed."""

from __future__ import annotations

import errno
import socket

import pytest

from lab import waiting
from tests.netns.conftest import POD_V4, Pod, reset


def test_keepalives_of_a_spliced_connection_are_no_activity(pod: Pod) -> None:
    group = pod.asleep("banner")
    with pod.client.connect(POD_V4) as made:
        lines = made.makefile("rb")
        assert lines.readline() == b"220 ready\r\n"
        pod.wait_ready()
        before_ns = pod.activator.last_activity_ns(group)
        seen = pod.activator.counters()
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1)):
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

        def kept_alive() -> bool:
            now = pod.activator.counters()
            return all(now[way] > seen[way] + 1 for way in ("flow_in", "flow_out"))

        waiting.until("keepalives and their answers", kept_alive)
        assert pod.activator.last_activity_ns(group) == before_ns
        made.sendall(b"said\r\n")
        assert lines.read() == b"said\r\n"
        lines.close()
    assert pod.activator.last_activity_ns(group) > before_ns


def test_the_app_is_told_of_a_client_that_half_closed_and_is_gone(pod: Pod) -> None:
    with pod.spliced(b"a long question") as (made, app):
        made.shutdown(socket.SHUT_WR)
        while app.recv(64):
            pass
        pod.wait_ready()
        reset(made)

        def told() -> bool:  # of a reset that comes behind an end of file
            return app.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE

        waiting.until("the reset", told)  # while it thinks, and writes nothing


def test_reset_by_the_client_is_a_reset(pod: Pod) -> None:
    with pod.spliced(b"hello") as (made, app):
        assert app.recv(5) == b"hello"
        reset(made)
        with pytest.raises(ConnectionResetError):
            app.recv(1)


def test_idle_connections_end_where_a_time_is_set(pod: Pod) -> None:
    pod.asleep("banner", proxy_timeout_ns=200_000_000)
    with pod.client.connect(POD_V4) as made:
        assert made.recv(64) == b"220 ready\r\n"
        with pytest.raises(ConnectionResetError):
            made.recv(1)
