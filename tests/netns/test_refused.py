"""The processes run again, but the app does not take the connection, or takes it late."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netns.conftest import POD_V4, POD_V6, PORT, Pod
from tests.netns.test_wake import REQUEST
from zeropod._fastpath._activator import EventKind, RestorePlan

TIMEOUT_S = 0.5
BOUND_S = 30  # on a busy machine; a test for a timeout, not for its precision
ELSEWHERE = "127.0.0.2"  # listened on, so the port looks open, but nobody is sent there


def nobody_listens(pod: Pod, stack: ExitStack) -> None:
    pass


def listens_elsewhere(pod: Pod, stack: ExitStack) -> None:
    stack.enter_context(pod.here.listen(PORT, host=ELSEWHERE))


def never_accepts(pod: Pod, stack: ExitStack) -> None:
    stack.enter_context(pod.here.listen(PORT, backlog=0))
    stack.enter_context(pod.here.connect(POD_V4))  # fills its queue


@pytest.mark.parametrize("app", [nobody_listens, listens_elsewhere, never_accepts])
def test_openers_are_reset_when_the_time_is_up(
    pod: Pod, app: Callable[[Pod, ExitStack], None]
) -> None:
    group = pod.group(connect_timeout_ns=int(TIMEOUT_S * 1e9))
    plan = RestorePlan(
        ["/bin/sh", "-c", ": > ready"],
        env={},
        cwd=str(pod.folder),
        ready_path=pod.folder / "ready",
    )
    pod.plans.append(plan)
    with ExitStack() as stack:
        app(pod, stack)
        pod.activator.hold(group)
        assert pod.activator.arm(group, plan) is False
        made = stack.enter_context(pod.client.connect(POD_V4))
        silent = stack.enter_context(pod.client.connect(POD_V4))
        started = time.monotonic()
        made.sendall(REQUEST)
        for opener in (made, silent):
            with pytest.raises(ConnectionResetError):
                opener.recv(1)
            assert TIMEOUT_S <= time.monotonic() - started < BOUND_S
        assert pod.wait(EventKind.CONNECT_TIMEOUT).value == 2
        pod.wait_ready()
        assert pod.activator.stats(group)["refused"] == 2
        assert pod.activator.stats(group)["held"] == 0
        if app is not never_accepts:  # later ones are the app's, and so refused at once
            with pytest.raises(ConnectionRefusedError):
                pod.client.connect(POD_V4)


@pytest.mark.parametrize(
    ("host", "only", "family"),
    [(POD_V4, "127.0.0.1", socket.AF_INET), (POD_V6, "::1", socket.AF_INET6)],
)
def test_what_listens_on_loopback_only_stays_closed_to_others(
    pod: Pod, host: str, only: str, family: int
) -> None:
    """As awake: a sleep opens no port to the network that the app has closed to it."""
    group = pod.group(connect_timeout_ns=int(TIMEOUT_S * 1e9))
    pod.activator.hold(group)
    with pod.client.connect(host) as made, pod.here.listen(PORT, family, host=only) as listener:
        made.sendall(b"hello")
        pod.wait(EventKind.PENDING)
        pod.activator.awake(group)
        with pytest.raises(ConnectionResetError):
            made.recv(5)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("only", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_what_listens_on_loopback_only_is_there_for_the_pod(
    pod: Pod, only: str, family: int
) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with pod.here.connect(only) as made, pod.here.listen(PORT, family, host=only) as listener:
        made.sendall(b"hello")
        pod.wait(EventKind.PENDING)
        pod.activator.awake(group)
        app, peer = listener.accept()
        with app:
            assert peer[0] == only
            assert app.recv(5) == b"hello"


def test_a_refused_connect_is_tried_again(pod: Pod) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with pod.client.connect(POD_V4) as made, pod.here.listen(PORT, host=ELSEWHERE):
        made.sendall(b"hello")
        pod.wait(EventKind.PENDING)
        pod.activator.awake(group)
        pod.wait(EventKind.READY)  # it was tried, and the redirect is off
        assert pod.activator.stats(group)["held"] == 1
        with pod.here.listen(PORT, host=POD_V4) as listener:
            app, _ = listener.accept()
            with app:
                assert app.recv(5) == b"hello"


def connecting(pod: Pod) -> bool:
    """Whether a handshake with the app is under way (SYN_SENT)."""
    table = Path(f"/proc/{pod.here.pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[2:4] == [f"0200090A:{PORT:04X}", "02"] for line in table)


def test_a_connect_under_way_that_fails_is_tried_again(pod: Pod) -> None:
    group = pod.group()
    pod.activator.hold(group)
    with pod.client.connect(POD_V4) as made, pod.here.listen(PORT, host=ELSEWHERE):
        made.sendall(b"hello")
        pod.wait(EventKind.PENDING)
        # What goes to the pod's own address goes over lo: the handshake hangs, until its first
        # retransmission, a second later, is refused.
        pod.here.run("ip", "link", "set", "lo", "down")
        pod.activator.awake(group)
        pod.wait(EventKind.READY)
        assert connecting(pod)
        pod.here.run("ip", "link", "set", "lo", "up")
        deadline = time.monotonic() + BOUND_S
        while connecting(pod):
            assert time.monotonic() < deadline
            os.sched_yield()
        assert pod.activator.stats(group)["held"] == 1
        with pod.here.listen(PORT, host=POD_V4) as listener:
            app, _ = listener.accept()
            with app:
                assert app.recv(5) == b"hello"
