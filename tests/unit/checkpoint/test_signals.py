"""Signals to a sleeper, on its way down, and on its way back."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.checkpoint.conftest import TRAPS, Rig, make
from zeropod.config import StopAsleep
from zeropod.container.disposition import Delivery
from zeropod.container.phase import Phase
from zeropod.container.state import State
from zeropod.errors import (
    CheckpointFailed,
    Internal,
    RestoreFailed,
)
from zeropod.oci.reaper import Exit


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
    script = f"read x; {TRAPS}; while read x; do :; done"
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
