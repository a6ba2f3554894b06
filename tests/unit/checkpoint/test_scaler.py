"""The scaler: every phase × every move, and what each injected failure leads to."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.unit.checkpoint.conftest import Rig, make
from tests.unit.checkpoint.fakes import (
    FakeGroup,
)
from zeropod.config import RestoreFailure
from zeropod.container.disposition import Delivery
from zeropod.container.phase import MOVES, Move, Phase, advance
from zeropod.container.report import Outcome
from zeropod.container.state import State
from zeropod.errors import (
    ActivatorError,
    CheckpointFailed,
    FailedPrecondition,
    ImageCorrupt,
    Internal,
    RestoreFailed,
)


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
