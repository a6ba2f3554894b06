"""When the scaler lets its container sleep: due, or asked to; and what it says of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.unit.checkpoint.conftest import Rig, make
from zeropod._fastpath._activator import Cause, Event, EventKind
from zeropod.container.idle import IdleTimer, Reason
from zeropod.container.phase import Phase
from zeropod.errors import (
    CheckpointFailed,
    FailedPrecondition,
    RestoreFailed,
)


async def test_who_may_be_a_user_is_waited_for_a_second(rig: Rig) -> None:
    rig.scaler.started()
    await rig.until(Phase.ASLEEP)
    idle = rig.scaler._idle
    assert idle.is_due
    rig.group.undecided_ns = time.monotonic_ns()
    assert not idle.is_due
    rig.group.undecided_ns -= 10**9
    assert idle.is_due


@pytest.mark.parametrize(("number", "seconds"), [(15, 3000), (3, 3000), (10, 50), (0, 0)])
async def test_what_got_a_signal_is_left_its_time(rig: Rig, number: int, seconds: int) -> None:
    """An app that was told to stop may save its data for long without a packet."""
    rig.scaler.signalled(number)
    idle = rig.scaler._idle
    assert (idle._due_ns() > time.monotonic_ns() + seconds * 10**9) is (seconds > 0)
    assert idle.is_due is (seconds == 0)


async def _wakes(rig: Rig, cause: Cause) -> int:
    """How much longer than told it waits before the next sleep, which then comes at once."""
    idle = rig.scaler._idle
    rig.engine.ends = [rig.container.init.live_pid]
    rig.group.cause = cause
    rig.group.connection()
    await rig.until(Phase.WAKING)
    await rig.until(Phase.AWAKE)
    factor = idle._wait_ns() // idle._duration_ns
    await rig.until(Phase.ASLEEP)
    return factor


async def test_what_may_be_https_probes_does_not_wake_it_for_ever(rig: Rig) -> None:
    """Each wake-up makes the wait longer, until they keep it awake; its status says so."""
    await rig.asleep()
    assert [await _wakes(rig, Cause.TLS) for _ in range(5)] == [1, 1, 2, 4, 8]
    assert rig.scaler.reason == ""  # it sleeps
    assert [await _wakes(rig, Cause.REQUEST)] == [8]  # an exec says nothing of them
    assert [await _wakes(rig, Cause.CONNECTION)] == [1]
    assert [await _wakes(rig, Cause.TLS) for _ in range(3)] == [1, 1, 2]


async def test_a_restore_that_is_tried_again_is_one_wake_up(rig: Rig) -> None:
    await rig.asleep()
    rig.engine.ends = [RestoreFailed("x", retryable=True), 77]
    rig.group.cause = Cause.TLS
    rig.group.connection()
    await rig.until(Phase.WAKING)
    await rig.until(Phase.AWAKE)
    assert len(rig.group.fired) == 2 and rig.scaler._idle._tls_wakes == 1


def test_the_wait_is_an_hour_at_most_or_what_was_asked_for() -> None:
    loop = asyncio.new_event_loop()
    for asked_s, factor in ((60, 60), (7200, 1)):
        idle = IdleTimer(loop, asked_s * 10**9, lambda: 0, lambda: None)
        assert idle.damped == ""
        for _ in range(100):
            idle.fired(by_tls=True)
        assert idle._wait_ns() == factor * asked_s * 10**9
        assert idle.damped == (
            "woken 100 times in a row by TLS from the node, perhaps HTTPS probes: "
            f"sleeps when idle for {factor * asked_s} s"
        )
    loop.close()


async def test_why_it_stays_awake(rig: Rig) -> None:
    rig.engine.dump = [CheckpointFailed("it holds a thing")]
    rig.engine.go_on.clear()
    rig.scaler.started()
    await rig.until(Phase.DUMPING)
    rig.engine.go_on.set()
    await rig.until(Phase.AWAKE)
    assert rig.scaler.reason == "it holds a thing"
    await rig.until(Phase.ASLEEP)
    assert rig.scaler.reason == ""


async def _awake(rig: Rig) -> None:
    """Known ports, and idle for long only later."""
    rig.scaler._idle._duration_ns = 3600 * 10**9
    rig.scaler.started()
    await rig.until(Phase.AWAKE)


async def test_a_sleep_that_is_asked_for_need_not_be_due(rig: Rig, init_pid: int) -> None:
    rig.engine.ends = [init_pid]
    await _awake(rig)
    await rig.scaler.sleep(force=False)
    assert rig.scaler.phase is Phase.ASLEEP and rig.scaler.image_bytes == 1
    await rig.scaler.sleep(force=False)  # it does
    assert rig.group.calls == ["hold", "arm"]
    rig.group.connection()
    await rig.until(Phase.AWAKE)
    await rig.scaler.sleep(force=False)
    assert rig.scaler.history.checkpoints.count == 2


async def test_a_sleep_that_is_asked_for_says_why_not(rig: Rig) -> None:
    await _awake(rig)
    hold = rig.scaler.inhibit("exec e1")
    with hold, pytest.raises(FailedPrecondition, match="exec e1 keeps it awake"):
        await rig.scaler.sleep(force=True)
    rig.engine.dump = [CheckpointFailed("it holds a thing")]
    with pytest.raises(FailedPrecondition, match="it holds a thing"):
        await rig.scaler.sleep(force=False)
    assert rig.scaler.phase is Phase.AWAKE
    assert rig.scaler.why_awake().reason is Reason.BACK_OFF
    await rig.scaler.sleep(force=False)  # nor is a back-off waited for


async def test_who_comes_between_is_not_cut_off(rig: Rig) -> None:
    """Unless the sleep is forced."""
    await _awake(rig)
    hold = rig.group.hold

    def come() -> None:
        hold()
        rig.group.last_ns = time.monotonic_ns()

    rig.group.hold = come  # type: ignore[method-assign]
    with pytest.raises(FailedPrecondition, match="somebody came meanwhile"):
        await rig.scaler.sleep(force=False)
    assert rig.scaler.phase is Phase.AWAKE and rig.group.calls == ["hold", "awake"]
    await rig.scaler.sleep(force=True)
    assert rig.scaler.phase is Phase.ASLEEP


async def test_a_sleep_whose_asker_goes_is_carried_through(rig: Rig) -> None:
    await _awake(rig)
    rig.engine.go_on.clear()
    asker = asyncio.create_task(rig.scaler.sleep(force=False))
    await rig.engine.dumping.wait()
    asker.cancel()
    await asyncio.wait([asker])
    rig.engine.go_on.set()
    await rig.until(Phase.ASLEEP)


async def test_min_awake_is_left_after_a_wake_up(tmp_path: Path, init_pid: int) -> None:
    rig = await make(tmp_path, init_pid, min_awake_ns=3600 * 10**9)
    await rig.asleep()  # the first sleep does not wait for it
    rig.group.connection()
    await rig.until(Phase.AWAKE)
    wait = rig.scaler.why_awake()
    assert wait.reason is Reason.MIN_AWAKE
    assert wait.until_ns > time.monotonic_ns() + 3000 * 10**9
    await rig.scaler.close()


async def test_what_is_told_of_the_last_wake_up(rig: Rig, init_pid: int) -> None:
    rig.engine.ends = [init_pid]
    await rig.asleep()
    assert rig.scaler.history.last_wake is None
    await rig.scaler.ensure_awake("exec e1")
    with rig.scaler.inhibit("test"):
        last = rig.scaler.history.last_wake
        assert last is not None and last.by == "exec e1" and list(last.phases()) == ["restored"]
        last.fired_ns = 100
        rig.group.on_event(Event(EventKind.READY, 1, 0, 140, 0))
        rig.group.on_event(Event(EventKind.FIRST_BYTE, 1, 0, 150, 0))
        assert list(last.phases().items())[:2] == [("listens", 40), ("first byte", 50)]
        assert last.phases()["restored"] > 50
    await rig.until(Phase.ASLEEP)
    rig.group.connection()
    await rig.until(Phase.AWAKE)
    assert rig.scaler.history.last_wake is not last
    assert rig.scaler.history.last_wake.by == "a connection"


async def test_a_request_that_comes_second_has_not_woken_it(rig: Rig, init_pid: int) -> None:
    rig.engine.ends = [init_pid]
    await rig.asleep()
    rig.group.connection()  # fired; the event is still on its way
    await rig.scaler.ensure_awake("exec e1")
    assert rig.scaler.history.last_wake is not None
    assert rig.scaler.history.last_wake.by == "a connection"
