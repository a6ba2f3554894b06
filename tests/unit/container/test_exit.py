"""How and when ends are told: init's last, each exactly once, nothing left alive."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.unit.container.conftest import Make
from zeropod.container.container import Container
from zeropod.container.disposition import Delivery
from zeropod.container.events import Deleted, Exited, Stdio
from zeropod.container.oom import Oom
from zeropod.container.phase import Phase
from zeropod.container.process import Status
from zeropod.container.state import State
from zeropod.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
)
from zeropod.oci.reaper import Exit

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


async def test_a_delete_is_answered_after_the_kill_that_led_to_it(make: Make) -> None:
    """containerd hangs up with the Delete's answer, and would tell who kills of that."""
    box = await make(*_FOREVER)
    await box.container.start()
    reached = box.hold("kill", after=True)
    order: list[str] = []
    killing = asyncio.create_task(box.container.kill(9))
    fd = await reached()
    killing.add_done_callback(lambda _: order.append("kill"))
    await box.container.wait()
    deleting = asyncio.create_task(box.container.delete())
    deleting.add_done_callback(lambda _: order.append("delete"))
    while "c1" not in box.told(Deleted):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert order == []
    os.close(fd)
    await asyncio.gather(killing, deleting)
    assert order == ["kill", "delete"]


async def test_a_runtime_that_cannot_kill_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    box = await make("sh", "-c", "exit 3", pid=None)
    box.fail("kill", "cgroup is frozen")
    await box.container.start()
    assert (await box.container.wait()).status == 3
    assert "what init has left was not killed" in caplog.text
    assert "cgroup is frozen" in caplog.text


async def test_the_exit_is_told_whatever_else_fails(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was lost when a cgroup vanished while it was read, as systemd's scopes do."""
    box = await make("sh", "-c", "exit 5")
    gone = OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    monkeypatch.setattr(Oom, "end", Mock(side_effect=gone))
    await box.container.start()
    assert (await asyncio.wait_for(box.container.wait(), 30)).status == 5
    assert box.told() == ["c1"]
    assert "c1: at its end" in caplog.text


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
    await box.over()
    both = await asyncio.gather(
        box.container.delete(), box.container.delete(), return_exceptions=True
    )
    assert {type(one) for one in both} == {Deleted, NotFound}
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


# -- signals -------------------------------------------------------------------------------------


class _Sleeper:
    """A scaler that answers as it is told, and notes what it is asked."""

    def __init__(self, container: Container) -> None:
        self.engine = SimpleNamespace(annotations=dict)
        self.reason = ""
        self.container = container
        self.phase = Phase.AWAKE
        self.answers: list[Exit | Delivery] = []
        self.log: list[str] = []

    async def kill_asleep(self, number: int) -> Exit | Delivery:
        self.log.append(f"asleep? {number}")
        return self.answers.pop(0) if self.answers else Delivery.DUE

    @contextlib.contextmanager
    def inhibit(self, reason: str, *, counts: bool = False) -> Iterator[None]:
        self.log.append("inhibited")
        yield
        self.log.append("free")

    def input_came(self) -> None: ...

    def signalled(self, number: int) -> None:
        self.log.append(f"signalled {number}")

    async def ensure_awake(self, cause: str) -> None: ...

    def started(self) -> None: ...

    def ended(self) -> None: ...

    async def close(self) -> None: ...


async def test_no_dump_begins_while_a_signal_is_sent(make: Make) -> None:
    box = await make(*_FOREVER, make_scaler=_Sleeper)
    await box.container.start()
    await box.container.kill(15)
    assert box.container.scaler.log[:4] == ["asleep? 15", "inhibited", "signalled 15", "free"]
    assert (await box.container.wait()).status == 143


async def test_a_signal_to_what_fell_asleep_meanwhile_is_not_lost(make: Make) -> None:
    box = await make(*_FOREVER, make_scaler=_Sleeper)
    await box.container.start()
    box.container.scaler.answers = [Delivery.DUE, Exit(137, 1)]
    box.container.state_now = State.SCALED_DOWN
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    assert box.container.scaler.log[:1] == ["asleep? 9"]
    assert box.container.scaler.log.count("asleep? 9") == 2
    assert not any(call.startswith("kill") for call in box.calls())


async def test_a_signal_to_what_is_over_comes_to_an_end(make: Make) -> None:
    """The shim is closing: the sleep is given up, and no exit was told."""
    box = await make(*_FOREVER, make_scaler=_Sleeper)
    await box.container.start()
    box.container.state_now = State.SCALED_DOWN
    box.container.scaler.phase = Phase.ENDED
    with pytest.raises(NotFound, match="process already finished"):
        await box.container.kill(15)
    assert len(box.container.scaler.log) < 10
    box.container.state_now = State.RUNNING


async def test_a_signal_does_not_wait_for_an_exec(make: Make) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    reached = box.hold("exec")
    exec = asyncio.create_task(box.exec("e1", "true"))
    gate = await reached()
    await box.container.kill(9)
    await box.over()
    assert not exec.done()
    os.close(gate)
    await asyncio.wait([exec])
    assert (await box.container.wait()).status == 137


# -- execs that never ran ------------------------------------------------------------------------


async def test_an_exec_that_does_not_start_is_over(make: Make) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    await box.container.add_exec("e1", b'{"args": ["true"]}', Stdio())
    with pytest.raises(FailedPrecondition, match="process not created"):
        await box.container.kill(9, exec_id="e1")
    waiting = asyncio.create_task(box.container.wait("e1"))
    box.fail("exec", "no such file")
    with pytest.raises(RuntimeFailed, match="no such file"):
        await box.container.start("e1")
    assert (await asyncio.wait_for(waiting, 5)).status == 255
    assert box.told() == []
    assert (await box.container.delete("e1")).process_id == "e1"


async def test_whoever_waits_for_an_exec_hears_that_it_is_deleted(make: Make) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    await box.container.add_exec("e1", b'{"args": ["true"]}', Stdio())
    waiting = asyncio.create_task(box.container.wait("e1"))
    await asyncio.wait([waiting], timeout=0)
    await box.container.delete("e1")
    assert (await asyncio.wait_for(waiting, 5)).status == 0


async def test_an_exec_needs_a_process(make: Make) -> None:
    box = await make(*_FOREVER)
    await box.container.start()
    for spec in (b"", b"[]", b"{"):
        with pytest.raises(InvalidArgument, match="exec e1: its spec is no OCI process"):
            await box.container.add_exec("e1", spec, Stdio())
