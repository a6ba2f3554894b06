"""The scaler: every phase × every move, and what each injected failure leads to."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.checkpoint.fakes import (
    FakeContainer,
    FakeEngine,
    FakeGroup,
    FakeReserved,
    store_below,
)
from zeropod._fastpath._activator import Cause, Event, EventKind
from zeropod.config import RestoreFailure, Settings, StopAsleep
from zeropod.container.disposition import Delivery
from zeropod.container.idle import IdleTimer, Reason
from zeropod.container.phase import MOVES, Move, Phase, advance
from zeropod.container.report import Outcome
from zeropod.container.scaler import Scaler
from zeropod.container.state import State
from zeropod.errors import (
    ActivatorError,
    CheckpointFailed,
    FailedPrecondition,
    ImageCorrupt,
    Internal,
    RestoreFailed,
)
from zeropod.oci.reaper import Exit

_TRAPS = 'trap "exit 0" TERM; trap "" HUP'


class Rig(SimpleNamespace):
    scaler: Scaler
    container: FakeContainer
    engine: FakeEngine
    fresh: FakeEngine
    group: FakeGroup
    reserved: list[FakeReserved]

    async def until(self, phase: Phase) -> None:
        await self.scaler.until(phase)
        assert self.scaler.phase is phase

    async def asleep(self) -> None:
        self.scaler.started()
        await self.until(Phase.ASLEEP)


async def _at_once(_pid: int, declared: frozenset[int]) -> frozenset[int]:
    """An app that listens from the beginning."""
    return declared


async def make(tmp_path: Path, pid: int, **settings: object) -> Rig:
    rig = Rig()
    options = Settings(ports=(80,), scaledown_duration_ns=1, **settings)  # type: ignore[arg-type]
    rig.container = FakeContainer(pid, options, tmp_path)
    rig.engine, rig.fresh = FakeEngine("runc"), FakeEngine("fresh")
    rig.reserved = []

    def reserve(_pid: int) -> FakeReserved:
        rig.reserved.append(FakeReserved())
        return rig.reserved[-1]

    def open_group(found: object, on_event: object) -> FakeGroup:
        rig.group = FakeGroup(on_event)  # type: ignore[arg-type]
        return rig.group

    rig.scaler = Scaler(
        rig.container,  # type: ignore[arg-type]
        rig.engine,
        rig.fresh,
        open_group=open_group,
        open_store=store_below(tmp_path),
        find_ports=_at_once,
        reserve=reserve,  # type: ignore[arg-type]
    )
    rig.container.on_end = rig.scaler.ended
    return rig


@pytest.fixture
def init_pid() -> Iterator[int]:
    """A process that handles SIGTERM, ignores SIGHUP, and does nothing about SIGUSR1."""
    script = f"{_TRAPS}; echo; while read x; do :; done"
    with subprocess.Popen(["sh", "-c", script], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture
async def rig(tmp_path: Path, init_pid: int) -> AsyncIterator[Rig]:
    made = await make(tmp_path, init_pid)
    yield made
    made.engine.go_on.set()
    made.engine.finish_go_on.set()
    await made.scaler.close()
    assert made.container.reaper.held == 0
    assert all(plan.closed for plan in made.engine.plans + made.fresh.plans)
    assert all(held.closed for held in made.engine.held)
    assert all(reserved.calls[-1] == "release" for reserved in made.reserved)
    if (tmp_path / "i").exists():
        assert list((tmp_path / "i").iterdir()) == []


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("what", Move)
def test_every_phase_and_move(phase: Phase, what: Move) -> None:
    if (phase, what) in MOVES:
        assert advance(phase, what) is MOVES[phase, what]
    else:
        with pytest.raises(Internal, match=what.value):
            advance(phase, what)


def test_the_table_reaches_the_end_from_everywhere() -> None:
    assert {phase for phase, what in MOVES if what is Move.END} == set(Phase)


async def test_idle_sleeps_and_a_connection_wakes(rig: Rig) -> None:
    await rig.asleep()
    assert rig.group.calls == ["hold", "arm"]
    assert rig.container.state is State.SCALED_DOWN
    rig.engine.dump = [CheckpointFailed("not again")]
    rig.group.connection()
    await rig.until(Phase.WAKING)
    assert rig.container.reaper.held == 1
    await rig.until(Phase.AWAKE)
    assert rig.container.state is State.RUNNING
    assert rig.container.init.live_pid == 4242
    assert rig.group.calls[2:3] == ["awake"]
    assert rig.scaler.history.restores.count == 1


async def test_a_connection_during_the_dump_wakes_right_after(rig: Rig) -> None:
    rig.engine.go_on.clear()
    rig.scaler.started()
    await rig.engine.dumping.wait()
    rig.group.connection()
    assert rig.group.fired == []
    rig.engine.go_on.set()
    await rig.until(Phase.WAKING)
    assert len(rig.group.fired) == 1


@pytest.mark.parametrize("which", ["last_ns", "undecided_ns"])
async def test_a_packet_between_the_look_and_the_hold_keeps_it_awake(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Its connection is the app's, and would not outlive the dump. Nor would one of the node's of
    which it is not known yet whether it counts."""
    hold = FakeGroup.hold

    def too_late(group: FakeGroup) -> None:
        hold(group)
        setattr(group, which, time.monotonic_ns() + 10**12)

    monkeypatch.setattr(FakeGroup, "hold", too_late)
    rig.scaler.started()
    await rig.until(Phase.AWAKE)
    while "awake" not in rig.group.calls:
        await rig.scaler._next()
    assert rig.group.calls == ["hold", "awake"]
    assert rig.scaler.phase is Phase.AWAKE
    assert not rig.engine.dumping.is_set()
    assert rig.container.state is State.RUNNING
    assert not rig.scaler.history.checkpoints.errors
    monkeypatch.undo()
    rig.group.last_ns = rig.group.undecided_ns = 0
    rig.scaler._on_idle()
    await rig.until(Phase.ASLEEP)


async def test_a_failed_dump_leaves_it_awake_and_backs_off(rig: Rig) -> None:
    rig.engine.dump = [CheckpointFailed("no", ("tail",)), CheckpointFailed("no"), None]
    await rig.asleep()
    assert rig.group.calls == ["hold", "awake", "hold", "awake", "hold", "arm"]
    checkpoints = rig.scaler.history.checkpoints
    assert (checkpoints.errors, checkpoints.count) == (2, 1)
    assert rig.container.exit is None


async def test_an_error_that_nobody_expects_leaves_it_awake(rig: Rig) -> None:
    rig.engine.dump = [ValueError("what is this?"), None]
    await rig.asleep()
    assert rig.group.calls == ["hold", "awake", "hold", "arm"]
    assert rig.scaler.history.checkpoints.errors == 1


async def test_an_error_that_nobody_expects_ends_a_wake_up(rig: Rig) -> None:
    async def abort(*_: object) -> None:
        raise ValueError("nor this")

    await rig.asleep()
    rig.engine.ends = [ValueError("what is this?")]
    rig.engine.abort = abort  # type: ignore[method-assign]
    with pytest.raises(RestoreFailed, match="what is this"):
        await asyncio.wait_for(rig.scaler.ensure_awake("exec"), 30)
    assert rig.container.exit is not None and rig.container.exit.status == 128


async def test_no_port_group_means_unscaled(rig: Rig) -> None:
    def refuse(found: object, on_event: object) -> FakeGroup:
        raise ActivatorError("no BTF")

    rig.scaler._open_group = refuse
    rig.scaler.started()
    await rig.until(Phase.UNSCALED)
    assert rig.scaler.reason == "no BTF"
    await rig.scaler.ensure_awake("exec")
    assert await rig.scaler.kill_asleep(9) is Delivery.DUE


async def test_a_proved_failure_is_tried_once_more(rig: Rig) -> None:
    await rig.asleep()
    rig.engine.ends = [RestoreFailed("x", retryable=True), 77]
    await rig.scaler.ensure_awake("exec")
    assert [plan.engine for plan in rig.group.fired] == ["runc", "runc"]
    assert rig.container.init.live_pid == 77
    assert rig.scaler.history.restores.errors == 1


@pytest.mark.parametrize(
    "ends",
    [
        [RestoreFailed("x")],
        [RestoreFailed("x", retryable=True), RestoreFailed("y", retryable=True)],
        [RestoreFailed("x", retryable=True), RestoreFailed("y")],
    ],
)
async def test_restart_starts_afresh_and_keeps_the_images(rig: Rig, ends: list[Exception]) -> None:
    await rig.asleep()
    rig.engine.ends = list(ends)
    rig.fresh.ends = [88]
    await rig.scaler.ensure_awake("exec")
    assert [plan.engine for plan in rig.group.fired] == ["runc"] * len(ends) + ["fresh"]
    assert rig.container.init.live_pid == 88
    assert rig.scaler._store is not None
    assert (rig.scaler._store.path / "failed" / "images" / "core-1.img").exists()


async def test_fail_ends_the_container(tmp_path: Path, init_pid: int) -> None:
    rig = await make(tmp_path, init_pid, restore_failure=RestoreFailure.FAIL)
    await rig.asleep()
    rig.engine.ends = [RestoreFailed("broken")]
    with pytest.raises(RestoreFailed, match="broken"):
        await rig.scaler.ensure_awake("exec")
    assert rig.container.exit is not None and rig.container.exit.status == 128
    assert "drop" in rig.group.calls and rig.group.closed
    assert rig.fresh.plans == []
    await rig.scaler.close()


async def test_even_a_fresh_start_can_fail(rig: Rig) -> None:
    await rig.asleep()
    rig.engine.ends = [RestoreFailed("broken")]
    rig.fresh.ends = [RestoreFailed("no such file")]
    with pytest.raises(RestoreFailed, match="no such file"):
        await rig.scaler.ensure_awake("exec")
    assert rig.container.exit is not None and rig.container.exit.status == 128
    with pytest.raises(RestoreFailed):
        await rig.scaler.ensure_awake("again")


async def test_a_plan_that_cannot_be_spawned_is_tried_again(rig: Rig) -> None:
    await rig.asleep()
    rig.group.fire_errno = [11]
    await rig.scaler.ensure_awake("exec")
    assert [plan.engine for plan in rig.group.fired] == ["runc", "runc"]


async def test_images_that_go_bad_before_they_are_armed(rig: Rig) -> None:
    rig.engine.plan_error = RestoreFailed("missing")
    rig.scaler.started()
    await rig.until(Phase.WAKING)
    await rig.until(Phase.AWAKE)
    assert [plan.engine for plan in rig.group.fired] == ["fresh"]


async def test_an_exec_keeps_it_awake(rig: Rig) -> None:
    with rig.scaler.inhibit("exec e1"):
        rig.scaler.started()
        await rig.until(Phase.AWAKE)
        rig.scaler._on_idle()
        await asyncio.gather(*rig.scaler._tasks)
        assert rig.scaler.phase is Phase.AWAKE
    await rig.until(Phase.ASLEEP)


async def test_the_lock_excludes_the_dump(rig: Rig) -> None:
    async with rig.container.lock:
        rig.scaler.started()
        await rig.until(Phase.AWAKE)
        rig.scaler._on_idle()
        hold = rig.scaler.inhibit("exec")
        hold.__enter__()
    await asyncio.gather(*rig.scaler._tasks)
    assert rig.group.calls == []
    hold.__exit__(None, None, None)


@pytest.mark.parametrize(("number", "status"), [(9, 137), (10, 138)])
async def test_a_fatal_signal_ends_the_sleeper(rig: Rig, number: int, status: int) -> None:
    await rig.asleep()
    exit = await rig.scaler.kill_asleep(number)
    assert isinstance(exit, Exit) and exit.status == status
    rig.container.publish_exit(exit)
    assert rig.group.fired == [] and "drop" in rig.group.calls and rig.group.closed


async def test_a_handled_signal_restores(rig: Rig) -> None:
    await rig.asleep()
    assert await rig.scaler.kill_asleep(15) is Delivery.DUE
    assert len(rig.group.fired) == 1


@pytest.mark.parametrize("woken_by", ["the signal", "bad images", "a connection before"])
async def test_a_signal_waits_for_the_handler_of_a_fresh_start(rig: Rig, woken_by: str) -> None:
    script = f"read x; {_TRAPS}; while read x; do :; done"
    with subprocess.Popen(["sh", "-c", script], stdin=-1) as process:  # noqa: ASYNC220
        assert process.stdin is not None
        rig.fresh.ends = [process.pid]
        rig.engine.ends = [RestoreFailed("broken")]
        if woken_by == "bad images":  # found when the plan is made: nobody has asked for anything
            rig.engine.plan_error = Internal("bad")
            rig.scaler.started()
            await rig.until(Phase.WAKING)
        else:
            await rig.asleep()
        with rig.scaler.inhibit("test"):
            if woken_by == "a connection before":
                rig.group.connection()
                await rig.until(Phase.AWAKE)
            kill = asyncio.create_task(rig.scaler.kill_asleep(15))
            await rig.until(Phase.AWAKE)
            assert not (await asyncio.wait([kill], timeout=0.05))[0]
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert await kill is Delivery.DUE
        process.kill()


async def test_a_signal_does_not_wait_for_the_handlers_of_a_restored_app(rig: Rig) -> None:
    """It may have others by now, which is its own affair."""
    with subprocess.Popen(["sh", "-c", "read x"], stdin=-1) as process:  # noqa: ASYNC220
        rig.engine.ends = [process.pid]
        await rig.asleep()
        with rig.scaler.inhibit("test"):
            rig.group.connection()
            await rig.until(Phase.AWAKE)
            assert await asyncio.wait_for(rig.scaler.kill_asleep(15), 4) is Delivery.DUE
        process.kill()


async def test_stop_asleep_discard_takes_the_short_way(tmp_path: Path, init_pid: int) -> None:
    rig = await make(tmp_path, init_pid, stop_asleep=StopAsleep.DISCARD)
    await rig.asleep()
    exit = await rig.scaler.kill_asleep(15)
    assert isinstance(exit, Exit) and exit.status == 143
    await rig.scaler.close()


@pytest.mark.parametrize("number", [1, 23, 0])
async def test_an_ignored_signal_does_nothing(rig: Rig, number: int) -> None:
    await rig.asleep()
    assert await rig.scaler.kill_asleep(number) is Delivery.MOOT
    assert rig.group.fired == [] and rig.scaler.phase is Phase.ASLEEP


async def test_sigkill_in_mid_restore(rig: Rig) -> None:
    await rig.asleep()
    rig.engine.finish_go_on.clear()
    rig.group.connection()
    await rig.engine.finishing.wait()
    exit = await rig.scaler.kill_asleep(9)
    assert isinstance(exit, Exit) and exit.status == 137
    assert rig.engine.aborted == [1001]
    rig.container.publish_exit(exit)


async def test_sigkill_in_the_moment_of_firing(rig: Rig) -> None:
    await rig.asleep()
    rig.group.connection()  # fired; the event is still on its way
    exit = await rig.scaler.kill_asleep(9)
    assert isinstance(exit, Exit) and exit.status == 137
    assert rig.engine.aborted == [1001]
    rig.container.publish_exit(exit)


async def test_sigterm_in_mid_restore_waits_for_it(rig: Rig) -> None:
    await rig.asleep()
    rig.engine.finish_go_on.clear()
    rig.group.connection()
    await rig.engine.finishing.wait()
    kill = asyncio.create_task(rig.scaler.kill_asleep(15))
    await asyncio.wait([kill], timeout=0)
    assert not kill.done()
    rig.engine.finish_go_on.set()
    assert await kill is Delivery.DUE


@pytest.mark.parametrize("moment", ["dumping", "asleep", "fired", "waking", "awake"])
async def test_close_at_any_moment(rig: Rig, moment: str) -> None:
    if moment == "dumping":
        rig.engine.go_on.clear()
        rig.scaler.started()
        await rig.engine.dumping.wait()
        asyncio.get_running_loop().call_soon(rig.engine.go_on.set)
    else:
        await rig.asleep()
    if moment in ("fired", "waking", "awake"):
        rig.engine.finish_go_on.clear()
        rig.group.connection()
    if moment in ("waking", "awake"):
        await rig.engine.finishing.wait()
    if moment == "awake":
        rig.engine.finish_go_on.set()
        await rig.until(Phase.AWAKE)
    await rig.scaler.close()
    assert rig.scaler.phase is Phase.ENDED
    assert rig.scaler._tasks == set()
    if moment in ("fired", "waking"):
        assert rig.engine.aborted == [1001]
    with pytest.raises(FailedPrecondition):
        await rig.scaler.ensure_awake("late")


async def test_its_own_end_while_ports_are_sought(rig: Rig) -> None:
    async def never(pid: int, declared: frozenset[int]) -> frozenset[int]:
        return await asyncio.get_running_loop().create_future()

    rig.scaler._find_ports = never
    rig.scaler.started()
    await asyncio.wait(rig.scaler._tasks, timeout=0)
    rig.scaler.ended()
    await asyncio.wait(rig.scaler._tasks)
    assert rig.scaler.phase is Phase.ENDED


async def test_init_gone_at_the_dump(rig: Rig) -> None:
    rig.container.init.live_pid = 2**22 + 1  # above any pid
    rig.scaler.started()
    while not rig.scaler.history.checkpoints.errors:
        await rig.scaler._next()
    assert "awake" in rig.group.calls and rig.engine.plans == []


async def test_a_restore_that_is_done_when_it_is_killed(rig: Rig) -> None:
    """The end of the restore and the kill in the same round of the loop: nothing escapes."""
    await rig.asleep()
    rig.engine.finish_go_on.clear()
    rig.group.connection()
    await rig.engine.finishing.wait()
    rig.engine.finish_go_on.set()
    exit = await rig.scaler.kill_asleep(9)
    if exit is None:  # for the one that runs
        assert rig.scaler.phase is Phase.AWAKE and rig.container.state is State.RUNNING
    else:
        assert rig.engine.aborted == [1001]
        rig.container.publish_exit(exit)


async def test_kill_of_what_is_lost_meanwhile(rig: Rig) -> None:
    await rig.asleep()
    rig.engine.ends = [RestoreFailed("x")]
    rig.fresh.ends = [RestoreFailed("y")]
    rig.group.connection()
    await rig.until(Phase.ENDED)
    assert await rig.scaler.kill_asleep(9) is Delivery.DUE
    assert rig.container.exit is not None and rig.container.exit.status == 128


async def test_sigkill_does_not_wait_for_a_dump(rig: Rig) -> None:
    rig.engine.go_on.clear()
    rig.scaler.started()
    await rig.engine.dumping.wait()
    kill = asyncio.create_task(rig.scaler.kill_asleep(9))
    ended = asyncio.get_running_loop().create_future()
    pidfd = os.pidfd_open(rig.container.init.live_pid)
    asyncio.get_running_loop().add_reader(pidfd, ended.set_result, None)
    await asyncio.wait_for(ended, 5)
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    rig.engine.dump = [CheckpointFailed("init is gone")]
    rig.engine.go_on.set()
    assert await kill is Delivery.DUE  # to what is gone: its exit is told by the container


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


async def test_a_wake_up_that_breaks_off_ends_the_container(rig: Rig) -> None:
    await rig.asleep()
    rig.engine.ends = [OSError(30, "Read-only file system")]  # type: ignore[list-item]
    rig.group.connection()
    await rig.until(Phase.ENDED)
    assert rig.container.exit is not None and rig.container.exit.status == 128
    assert rig.engine.aborted == [0]


async def test_a_plan_that_cannot_be_made_is_tried_again(rig: Rig) -> None:
    """A full disk, say. The images are whole."""
    plan = rig.engine.plan
    failures = [OSError(28, "No space left on device")]

    def once(*given: object) -> object:
        if failures:
            raise failures.pop()
        return plan(*given)  # type: ignore[arg-type]

    rig.engine.plan = once  # type: ignore[method-assign]
    rig.scaler.started()
    await rig.until(Phase.AWAKE)
    await rig.until(Phase.WAKING)
    await rig.until(Phase.AWAKE)
    assert rig.scaler.history.restores.count == 1 and not rig.fresh.plans


async def test_a_pre_dump_comes_before_anything_is_held(tmp_path: Path, init_pid: int) -> None:
    rig = await make(tmp_path, init_pid, pre_dump=True)
    seen: list[list[str]] = []
    rig.engine.during_pre_dump = lambda: seen.append(list(rig.group.calls))
    await rig.asleep()
    assert seen == [[]] and rig.group.calls == ["hold", "arm"]
    assert rig.container.state is State.SCALED_DOWN
    await rig.scaler.close()


async def test_traffic_during_a_pre_dump_keeps_it_awake(tmp_path: Path, init_pid: int) -> None:
    """Nothing has failed: it is tried again when it is idle again, with images of its own."""
    rig = await make(tmp_path, init_pid, pre_dump=True)

    def traffic() -> None:
        rig.engine.during_pre_dump = lambda: None
        rig.group.last_ns = time.monotonic_ns() + 50_000_000

    rig.engine.during_pre_dump = traffic
    await rig.asleep()
    assert rig.engine.pre_dumps == 2
    assert rig.group.calls == ["awake", "hold", "arm"]
    assert not rig.scaler.history.checkpoints.errors
    assert [outcome for outcome, _ in rig.container.reports] == [Outcome.SCALED_DOWN]
    assert len(list((tmp_path / "i/ns.c1").glob("[0-9]*"))) == 1
    await rig.scaler.close()


async def test_a_plan_is_fitted_to_a_changed_world(rig: Rig) -> None:
    await rig.asleep()
    (held,) = rig.engine.held
    assert held.changed
    held.changed()
    assert rig.group.calls == ["hold", "arm", "disarm", "arm"]
    assert rig.engine.fitted == 1
    (plan,) = rig.engine.plans
    rig.group.connection()
    held.changed()  # it has fired: the next attempt, if any, is fitted when it is planned
    await rig.until(Phase.AWAKE)
    assert rig.group.fired == [plan]
    held.changed()
    assert rig.engine.fitted == 1


async def test_a_plan_that_cannot_be_fitted_is_armed_again(rig: Rig) -> None:
    def fit(*_: object) -> None:
        raise ImageCorrupt("cut short")

    await rig.asleep()
    rig.engine.fit = fit  # type: ignore[method-assign]
    assert rig.engine.held[0].changed
    rig.engine.held[0].changed()
    assert rig.group.calls == ["hold", "arm", "disarm", "arm"]


async def test_ports_are_held_while_it_sleeps(rig: Rig) -> None:
    rig.engine.dump = [CheckpointFailed("not now")]
    await rig.asleep()
    failed, reserved = rig.reserved
    assert failed.calls == ["take", "release"]
    assert reserved.calls == ["take", "hold"]
    rig.group.connection()
    await rig.until(Phase.WAKING)
    assert reserved.calls == ["take", "hold"]
    await rig.until(Phase.AWAKE)
    assert reserved.calls == ["take", "hold", "release"]


async def test_a_fresh_start_finds_its_ports_free(rig: Rig) -> None:
    await rig.asleep()
    (reserved,) = rig.reserved
    rig.engine.ends = [RestoreFailed("for good")]
    rig.fresh.finish_go_on.clear()
    rig.group.connection()
    await rig.fresh.finishing.wait()
    assert reserved.calls == ["take", "hold", "release"]
    rig.fresh.finish_go_on.set()


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
