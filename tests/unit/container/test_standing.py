"""Why a container is awake and when it sleeps, in words; and a sleep that is asked for."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from zeropod._fastpath._activator import Mode, PortView, Unread
from zeropod.container import standing
from zeropod.container.idle import Reason, Wait
from zeropod.container.phase import Phase
from zeropod.container.state import State
from zeropod.errors import FailedPrecondition

V4 = b"\0" * 10 + b"\xff\xff" + bytes([10, 1, 2, 3])
V6 = socket.inet_pton(socket.AF_INET6, "fd00::7")


def _port(number: int = 80, last_ns: int = 5, remote: bytes = V4, **given: Any) -> PortView:
    fields = {"udp": False, "of_node": False, "unread": Unread.NO, **given}
    return PortView(number, mode=Mode.PASS, last_activity_ns=last_ns, remote=remote,
                    remote_port=4711, **fields)  # fmt: skip


class _Scaler:
    def __init__(self, wait: Wait, ports: list[PortView]) -> None:
        self.phase = Phase.AWAKE
        self.reason = self.damped = ""
        self.over: Callable[[], None] = lambda: None
        self.group: Any = SimpleNamespace(view=lambda: ports)
        self.wait = wait
        self.slept: list[bool] = []

    def why_awake(self) -> Wait:
        return self.wait

    async def past(self, *phases: Phase) -> None:
        if self.phase in phases:
            self.phase = Phase.AWAKE
            self.over()

    async def sleep(self, *, force: bool) -> None:
        self.slept.append(force)


def _container(
    reason: Reason = Reason.PACKET, what: str = "", *ports: PortView, until_ns: int = 0
) -> Any:
    return SimpleNamespace(
        state_now=State.RUNNING,
        scaling_off_reason="",
        scaler=_Scaler(Wait(reason, until_ns, what), list(ports)),
        init=SimpleNamespace(live_pid=os.getpid()),
    )


@pytest.mark.parametrize(
    ("reason", "what", "words"),
    [
        (Reason.HELD, "exec e1", "exec e1 keeps it awake"),
        (Reason.PUT_OFF, "signal 15", "signal 15 was sent, and it is left its time"),
        (Reason.MIN_AWAKE, "", "min-awake: it was woken a short while ago"),
        (Reason.EVENT, "its wake-up", "the last that counts is its wake-up"),
        (
            Reason.UNDECIDED,
            "",
            "somebody opens a connection, or has one from the node and has not spoken yet",
        ),
        (Reason.PACKET, "", "a connection waits for the app to listen"),
    ],
)
def test_every_reason_has_words(reason: Reason, what: str, words: str) -> None:
    assert standing.standing(_container(reason, what)).reason == words


def test_a_failed_checkpoint_is_named() -> None:
    container = _container(Reason.BACK_OFF)
    container.scaler.reason = "checkpoint c1: no space left"
    found = standing.standing(container)
    assert found.reason == "backs off after a failed checkpoint: checkpoint c1: no space left"


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (_port(), "the last packet was 10.1.2.3:4711's"),
        (_port(remote=V6), "the last packet was [fd00::7]:4711's"),
        (_port(of_node=True), "the last packet was 10.1.2.3:4711's, of the node"),
        (
            _port(of_node=True, unread=Unread.TLS),
            "the last packet was 10.1.2.3:4711's, of the node; it may be a probe, but TLS cannot "
            "be read",
        ),
        (
            _port(of_node=True, unread=Unread.HTTP2),
            "the last packet was 10.1.2.3:4711's, of the node; it may be a probe, but HTTP/2 "
            "cannot be read",
        ),
    ],
)
def test_whose_the_last_packet_was(port: PortView, words: str) -> None:
    other = _port(81, last_ns=4, remote=V6)
    assert standing.standing(_container(Reason.PACKET, "", other, port)).reason == words


def test_when_it_sleeps_is_told_by_the_wall_clock() -> None:
    until_ns = time.monotonic_ns() + 7_000_000_000
    before_ns = time.time_ns()
    found = standing.standing(_container(until_ns=until_ns)).sleeps_ns
    assert before_ns < found - 6_900_000_000 < found - 7_000_000_000 + 10**9 < found
    assert standing.unix_ns(0) == 0
    assert standing.standing(_container(Reason.HELD, "exec")).sleeps_ns == 0


def test_what_does_not_scale_and_what_does_not_listen() -> None:
    container = _container()
    container.scaler.phase = Phase.FINDING
    container.scaler.reason = "it listens on no TCP port"
    assert standing.standing(container) == standing.Standing("it listens on no TCP port")
    container.scaler = None
    container.scaling_off_reason = "it has a terminal"
    assert standing.standing(container) == standing.Standing("it has a terminal")
    assert standing.view(None) == []


@pytest.mark.parametrize("state", [State.SCALED_DOWN, State.STOPPED, State.CREATED])
def test_what_is_not_awake_has_no_reason(state: State) -> None:
    container = _container(until_ns=5)
    container.state_now = state
    assert standing.standing(container) == standing.Standing()


def test_ports_that_are_just_going(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> list[PortView]:
        raise FileNotFoundError(2, "no such group")

    container = _container()
    container.scaler.group.view = gone
    assert standing.view(container.scaler) == []
    container.scaler.group = None
    assert standing.view(container.scaler) == []


async def test_open_connections_object_to_a_sleep() -> None:
    """Counted in the kernel's own tables."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.getsockname()[1]
        container = _container(Reason.PACKET, "", _port(number), _port(number, udp=True))
        assert standing.open_connections(container) == 0
        await standing.put_to_sleep(container, force=False)
        with socket.create_connection(("127.0.0.1", number)) as made:
            with pytest.raises(FailedPrecondition, match=r"^1 connection is open.*--force"):
                await standing.put_to_sleep(container, force=False)
            await standing.put_to_sleep(container, force=True)
            with listening.accept()[0], socket.create_connection(("127.0.0.1", number)):
                made.shutdown(socket.SHUT_WR)  # half of it is open still
                with pytest.raises(FailedPrecondition, match=r"^2 connections are open"):
                    await standing.put_to_sleep(container, force=False)
    assert container.scaler.slept == [False, True]


async def test_who_has_woken_it_objects_to_a_sleep() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        number = listening.getsockname()[1]
        container = _container(Reason.PACKET, "", _port(number))
        container.scaler.phase = Phase.WAKING

        def over() -> None:
            stack.enter_context(socket.create_connection(("127.0.0.1", number)))

        container.scaler.over = over
        with pytest.raises(FailedPrecondition, match=r"^1 connection is open"):
            await standing.put_to_sleep(container, force=False)


@pytest.mark.parametrize("phase", [Phase.FINDING, Phase.UNSCALED])
async def test_what_cannot_sleep_says_why(phase: Phase) -> None:
    container = _container()
    container.scaler.phase, container.scaler.reason = phase, "it listens on no TCP port"
    with pytest.raises(FailedPrecondition, match="it listens on no TCP port"):
        await standing.put_to_sleep(container, force=True)
    container.scaler, container.scaling_off_reason = None, "scaledown-duration is 0"
    with pytest.raises(FailedPrecondition, match="scaledown-duration is 0"):
        await standing.put_to_sleep(container, force=True)


async def test_a_wake_of_what_has_ended() -> None:
    container = _container()
    container.state_now = State.STOPPED
    with pytest.raises(FailedPrecondition, match="it has ended"):
        await standing.wake(container)
    for state, why in ((State.CREATED, "it was not started"), (State.PAUSED, "it is paused")):
        container.state_now = state
        with pytest.raises(FailedPrecondition, match=why):
            await standing.wake(container)
    container.state_now, container.scaler = State.RUNNING, None
    await standing.wake(container)


def test_why_it_waits_longer_is_said_whatever_it_waits_for() -> None:
    for reason in Reason:
        container = _container(reason, "a thing", until_ns=2**64 - 1)
        container.scaler.damped = "woken by TLS"
        found = standing.standing(container)
        assert found.reason.endswith("; woken by TLS") is (reason is not Reason.HELD)
        assert found.sleeps_ns == 2**63 - 1  # as far as a protobuf's number goes
