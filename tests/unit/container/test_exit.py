"""How and when ends are told: init's last, each exactly once, nothing left alive."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.unit.container.conftest import Make
from zeropod.container.events import Deleted, Exited
from zeropod.container.process import Status
from zeropod.container.state import State
from zeropod.errors import IllegalTransition, NotFound

_FOREVER = ("sleep", "60")


async def test_init_is_told_after_its_execs(make: Make) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    for number in range(3):
        await box.exec(f"e{number}", *_FOREVER)
    os.kill(box.pid, signal.SIGTERM)
    await box.over()
    assert box.container.state_now is State.STOPPED
    waiting = asyncio.create_task(box.container.wait())
    for number in (1, 0, 2):
        assert not waiting.done() and "c1" not in box.told()
        assert box.container.state().status is Status.RUNNING
        await box.container.kill(9, exec_id=f"e{number}")
        assert (await box.container.wait(f"e{number}")).status == 137
    assert (await waiting).status == 143
    assert box.told() == ["e1", "e0", "e2", "c1"]
    assert box.calls().count("kill --all 9") == 0


@pytest.mark.parametrize("pid", [None, "/proc/1/ns/pid"], ids=["host's", "pod's"])
async def test_without_a_pid_namespace_leftovers_are_killed(make: Make, pid: str | None) -> None:
    box = await make(*_FOREVER, pid=pid)
    await box.container.start()
    left = await box.exec("e1", *_FOREVER)
    await box.container.kill(15)
    assert (await box.container.wait()).status == 143
    assert box.told() == ["e1", "c1"]
    assert (await box.container.wait("e1")).status == 137
    assert not Path(f"/proc/{left}").exists()
    assert "kill --all 9" in box.calls()


async def test_with_nothing_left_there_is_nothing_to_kill(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    box = await make("true", pid=None)
    await box.container.start()
    assert (await box.container.wait()).status == 0
    assert "kill --all 9" in box.calls() and not caplog.records


async def test_a_runtime_that_cannot_kill_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    box = await make("sh", "-c", "exit 3", pid=None)
    box.fail("kill", "cgroup is frozen")
    await box.container.start()
    assert (await box.container.wait()).status == 3
    assert "what init has left was not killed" in caplog.text
    assert "cgroup is frozen" in caplog.text


async def test_an_exec_in_the_moment_of_the_end_is_killed_too(make: Make) -> None:
    """The runtime starts an exec while init ends: the kill comes after it, not before."""
    box = await make(*_FOREVER, pid=None)
    await box.container.start()
    reached = box.hold("exec")
    starting = asyncio.create_task(box.exec("e1", *_FOREVER))
    gate = await reached()
    os.kill(box.pid, signal.SIGKILL)
    await box.over()
    os.close(gate)
    await starting
    assert (await box.container.wait()).status == 137
    assert box.told() == ["e1", "c1"]


async def test_an_exec_that_does_not_start_does_not_hold_up_the_end(make: Make) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    box.fail("exec", "no such file")
    reached = box.hold("exec")
    starting = asyncio.create_task(box.exec("e1", "nothing"))
    gate = await reached()
    os.kill(box.pid, signal.SIGKILL)
    await box.over()
    os.close(gate)
    with pytest.raises(Exception, match="no such file"):
        await starting
    await box.container.wait()
    assert box.told() == ["c1"]


async def test_delete_waits_until_the_end_is_told(make: Make) -> None:
    box = await make("sh", "-c", "exit 4")
    await box.container.start()
    await box.over()
    gone = await box.container.delete()
    assert gone.exit.status == 4
    assert [type(event) for event in box.events[-2:]] == [Exited, Deleted]


async def test_delete_of_what_was_never_started(make: Make) -> None:
    box = await make(*_FOREVER)
    pid = box.pid
    gone = await box.container.delete()
    assert gone.exit.status == 137
    assert [type(event) for event in box.events[-2:]] == [Exited, Deleted]
    assert not Path(f"/proc/{pid}").exists()


async def test_delete_of_what_the_runtime_has_forgotten(make: Make) -> None:
    box = await make(*_FOREVER)
    box.fail("delete", "container does not exist")
    assert (await box.container.delete()).exit.status == 137
    (box.path / "fail-delete").unlink()


async def test_of_two_deletes_one_wins(make: Make) -> None:
    box = await make("true")
    await box.container.start()
    both = await asyncio.gather(
        box.container.delete(), box.container.delete(), return_exceptions=True
    )
    assert {type(one) for one in both} == {Deleted, IllegalTransition}
    assert box.told(Deleted) == ["c1"]


async def test_a_delete_that_fails_can_be_tried_again(make: Make) -> None:
    box = await make("true")
    await box.container.start()
    await box.container.wait()
    box.fail("delete", "device or resource busy")
    with pytest.raises(Exception, match="resource busy"):
        await box.container.delete()
    (box.path / "fail-delete").unlink()
    await box.container.delete()
    assert box.told(Deleted) == ["c1"]


async def test_a_signal_after_the_end(make: Make) -> None:
    box = await make("true")
    await box.container.start()
    await box.container.wait()
    with pytest.raises(NotFound, match="already finished"):
        await box.container.kill(9)
