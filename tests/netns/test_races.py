"""Two containers of a pod at once, and openers who are gone before the app is back; by both ways.

What an opener meets in the middle of a real dump or restore stands in tests/criu/test_races.py.
"""

from __future__ import annotations

import select
import socket
import threading

import pytest

from lab import waiting
from tests.netns.conftest import POD_V4, Pod, reset
from tests.netns.test_wake import REQUEST, ask
from zeropod._fastpath._activator import Activation, EventKind, RestorePlan

FIRST, SECOND = 8080, 9090


@pytest.fixture(params=[Activation.PARK, Activation.SPLICE], ids=["park", "splice"])
def activation(request: pytest.FixtureRequest) -> Activation:
    return request.param


def plan(pod: Pod, port: int) -> RestorePlan:
    """Of one of several containers: it has a folder of its own."""
    folder = pod.folder
    pod.folder = folder / str(port)
    pod.folder.mkdir(exist_ok=True)
    made = pod.plan("http", port)
    pod.folder = folder
    return made


def starts(pod: Pod, port: int) -> int:
    file = pod.folder / str(port) / "starts"
    return file.stat().st_size if file.exists() else 0


def told(pod: Pod, kind: EventKind) -> list[int]:
    """The groups that an event was about, once for each time."""
    pod.take_events()
    return sorted(event.group for event in pod.seen if event.kind == kind)


def asks(pod: Pod, port: int) -> bytes:
    return ask(pod.client.connect(POD_V4, port))


@pytest.mark.parametrize("round_", range(5))
def test_two_containers_are_woken_in_the_same_moment(pod: Pod, round_: int) -> None:
    groups = {port: pod.group(port) for port in (FIRST, SECOND)}
    for port, group in groups.items():
        pod.activator.hold(group)
        assert pod.activator.arm(group, plan(pod, port)) is False
    together = threading.Barrier(4)
    answers: list[bytes] = []

    def opener(port: int) -> None:
        together.wait()
        answers.append(asks(pod, port))

    threads = [threading.Thread(target=opener, args=(port,)) for port in (*groups, *groups)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4 and all(one.startswith(b"HTTP/1.1 200") for one in answers)
    waiting.until("both", lambda: told(pod, EventKind.READY) == sorted(groups.values()))
    assert told(pod, EventKind.FIRED) == sorted(groups.values())
    assert [starts(pod, port) for port in groups] == [1, 1]


def test_one_container_is_woken_while_another_goes_down(pod: Pod) -> None:
    """The one that is held has its own openers, who wait for its dump alone."""
    first, second = pod.group(FIRST), pod.group(SECOND)
    pod.activator.hold(second)
    assert pod.activator.arm(second, plan(pod, SECOND)) is False
    pod.activator.hold(first)  # its dump begins
    made = pod.client.make_socket()
    made.setblocking(False)
    made.connect_ex((POD_V4, FIRST))
    pod.wait(EventKind.PENDING)
    assert asks(pod, SECOND).startswith(b"HTTP/1.1 200")
    pod.wait_ready()
    assert pod.activator.stats(first)["held"] == 1 and starts(pod, FIRST) == 0
    assert pod.activator.arm(first, plan(pod, FIRST)) is True  # its dump is done
    made.settimeout(60)
    if pod.activation == Activation.PARK:
        assert select.select([], [made], [], 60)[1], "the connect goes on"
    assert ask(made).startswith(b"HTTP/1.1 200")
    assert told(pod, EventKind.FIRED) == sorted([first, second])
    assert [starts(pod, port) for port in (FIRST, SECOND)] == [1, 1]


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_an_opener_who_is_gone(pod: Pod, how: str) -> None:
    """Who is known to be gone wakes nobody; for another one the app is woken all the same."""
    group = pod.group()
    pod.activator.hold(group)
    made = opening(pod)
    if pod.activation == Activation.SPLICE:
        made.sendall(REQUEST)
    pod.wait(EventKind.PENDING)
    if how == "resets":
        reset(made)
    else:
        made.close()
    known = pod.activation == Activation.SPLICE and how == "resets"
    if known:
        waiting.until("nobody", lambda: pod.activator.stats(group)["held"] == 0)
    assert pod.activator.arm(group, pod.plan("http")) is not known
    assert asks(pod, FIRST).startswith(b"HTTP/1.1 200")
    pod.wait_ready()
    waiting.until("nobody", lambda: pod.activator.stats(group)["held"] == 0)
    assert pod.starts == pod.activator.stats(group)["wakes"] == 1
    sockets = pod.here.ask("ss", "-tnH", "state", "established")
    assert not sockets, "somebody is still connected"


def opening(pod: Pod) -> socket.socket:
    """One whose SYN is parked, or who is accepted."""
    if pod.activation == Activation.SPLICE:
        return pod.client.connect(POD_V4)
    made = pod.client.make_socket()
    made.setblocking(False)
    made.connect_ex((POD_V4, FIRST))
    waiting.until("his SYN", lambda: pod.activator.counters()["parked"] == 1)
    return made


def test_a_silent_opener_who_is_gone_wakes_nobody_where_he_was_accepted(pod: Pod) -> None:
    """Opened and closed without a byte, he is a probe; parked, nothing tells that he is gone."""
    group = pod.asleep("http")
    opening(pod).close()
    if pod.activation == Activation.PARK:
        pod.wait(EventKind.READY)
    else:
        waiting.until("a probe", lambda: pod.activator.stats(group)["probes"] == 1)
    wakes = 1 if pod.activation == Activation.PARK else 0
    assert pod.activator.stats(group)["wakes"] == pod.starts == wakes
