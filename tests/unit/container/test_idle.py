"""The idle timer: when it is due, what it waits for, and what objects to a sleep asked for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from zeropod.container import idle
from zeropod.container.idle import Asked, IdleTimer, Reason

S = 1_000_000_000
IDLE_NS = 10 * S


class Rig:
    """A timer over a clock and an event loop that stand still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, begin_ns: int, min_awake_ns: int) -> None:
        self.now_ns = begin_ns
        self.packet_ns = self.undecided_ns = 0
        self.waits: list[float] = []
        self.fired = 0
        monkeypatch.setattr(idle, "time", SimpleNamespace(monotonic_ns=lambda: self.now_ns))
        self.due: Callable[[], None] = lambda: None
        self.timer = IdleTimer(
            self,  # type: ignore[arg-type]
            IDLE_NS,
            lambda: self.packet_ns,
            self._fire,
            lambda: self.undecided_ns,
            min_awake_ns,
        )

    def call_later(self, seconds: float, due: Callable[[], None]) -> SimpleNamespace:
        self.waits.append(seconds)
        self.due = due
        return SimpleNamespace(cancel=lambda: None)

    def _fire(self) -> None:
        self.fired += 1


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch, 1000 * S, 30 * S)


def test_it_fires_once_when_nothing_has_happened(rig: Rig) -> None:
    rig.timer.start()
    assert rig.waits == [10]
    rig.now_ns += IDLE_NS
    rig.due()
    assert rig.fired == 1 and rig.waits == [10]


def test_it_is_set_again_from_the_last_packet_and_not_polled(rig: Rig) -> None:
    rig.timer.start()
    rig.now_ns += IDLE_NS
    rig.packet_ns = rig.now_ns - 3 * S
    rig.due()
    assert rig.fired == 0 and rig.waits == [10, 7]


@pytest.mark.parametrize("begin_ns", [2**63 - 5 * S, 2**63, 2**64 - 60 * S])
def test_a_clock_that_has_run_for_long(monkeypatch: pytest.MonkeyPatch, begin_ns: int) -> None:
    """The kernel's record is 64 bits without a sign; what is made of it does not wrap."""
    rig = Rig(monkeypatch, begin_ns, 0)
    rig.packet_ns = begin_ns
    rig.timer.start()
    assert rig.waits == [10] and not rig.timer.is_due
    assert rig.timer.why() == (Reason.PACKET, begin_ns + IDLE_NS, "")
    rig.now_ns += IDLE_NS
    assert rig.timer.is_due


def test_a_packet_of_another_processor_that_is_ahead(rig: Rig) -> None:
    rig.packet_ns = rig.now_ns + 1000
    rig.timer.start()
    assert rig.waits[0] == pytest.approx(10.000001)


def test_what_it_waits_for(rig: Rig) -> None:
    timer, begin_ns = rig.timer, rig.now_ns
    assert timer.why() == (Reason.EVENT, begin_ns + IDLE_NS, "its start")
    rig.packet_ns = begin_ns + 1
    assert timer.why() == (Reason.PACKET, begin_ns + 1 + IDLE_NS, "")
    rig.now_ns += 2 * S
    timer.touch("data on stdin")
    assert timer.why() == (Reason.EVENT, rig.now_ns + IDLE_NS, "data on stdin")
    rig.undecided_ns = rig.now_ns + IDLE_NS
    assert timer.why() == (Reason.UNDECIDED, rig.undecided_ns + S, "")
    rig.undecided_ns += 3600 * S  # again and again: there is an end to it
    assert timer.why().until_ns == rig.now_ns + IDLE_NS + 10 * S
    rig.undecided_ns = 0
    timer.back_off()
    timer.back_off()
    assert timer.why() == (Reason.BACK_OFF, rig.now_ns + 2 * IDLE_NS, "")
    timer.forget_backoff()
    timer.put_off(60, "signal 10")
    timer.put_off(20, "signal 12")  # the longer one stands
    assert timer.why() == (Reason.PUT_OFF, rig.now_ns + 60 * S, "signal 10")
    with timer.inhibit("exec b", counts=True), timer.inhibit("exec a"):
        assert timer.why() == (Reason.HELD, 0, "exec a, exec b")
        assert not timer.is_due
    rig.now_ns += 55 * S
    timer.touch("the end of exec b")
    assert timer.why().what == "the end of exec b"


def test_who_opens_as_something_else_ends_is_waited_for(rig: Rig) -> None:
    timer = rig.timer
    timer.put_off(60, "signal 10")
    rig.now_ns += 60 * S
    rig.undecided_ns = rig.now_ns
    assert not timer.is_due
    rig.now_ns += S
    assert timer.is_due
    with timer.inhibit("exec a"):
        rig.now_ns += 3600 * S
        rig.undecided_ns = rig.now_ns
    assert timer.why() == (Reason.UNDECIDED, rig.now_ns + S, "")


def test_a_wake_up_is_good_for_a_while(rig: Rig) -> None:
    rig.timer.woken()
    woken_ns = rig.now_ns
    assert rig.timer.why() == (Reason.MIN_AWAKE, woken_ns + 30 * S, "")
    rig.timer.start()
    assert rig.waits == [30]
    rig.now_ns += 25 * S
    assert not rig.timer.is_due
    rig.packet_ns = rig.now_ns
    assert rig.timer.why().reason is Reason.PACKET  # which lasts longer
    rig.now_ns += IDLE_NS
    assert rig.timer.is_due


def test_a_start_is_no_wake_up(rig: Rig) -> None:
    rig.timer.touch("its start")
    rig.now_ns += IDLE_NS
    assert rig.timer.is_due


def test_what_objects_to_a_sleep_that_is_asked_for(rig: Rig) -> None:
    timer = rig.timer
    timer.woken()
    assert timer.objection(None) == "it is not idle"
    rig.now_ns += S
    asked, forced = Asked(rig.now_ns, False), Asked(rig.now_ns, True)
    assert timer.objection(asked) == "" == timer.objection(forced)
    rig.packet_ns = rig.now_ns + 1
    assert timer.objection(asked).startswith("somebody came meanwhile")
    assert timer.objection(forced) == ""
    rig.packet_ns, rig.undecided_ns = 0, rig.now_ns + 1
    assert timer.objection(asked).startswith("somebody came meanwhile")
    rig.undecided_ns = 0
    rig.now_ns += 1
    timer.touch("data on stdin")
    assert timer.objection(asked).startswith("data on stdin came meanwhile")
    timer.put_off(60, "signal 15")
    assert "signal 15 was sent" in timer.objection(asked)
    assert timer.objection(forced) == ""
    with timer.inhibit("exec e1"):
        assert timer.objection(asked) == "exec e1 keeps it awake" == timer.objection(forced)
