"""Every step that is a program of its own × how it may fail × the state it is needed in.

The step fails once. Whatever the caller was told, the container is in one state only afterwards,
does what is asked of it next, has its memory (or has said that it is lost), and ends once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.criu.conftest import Box, MakeBox
from tests.criu.faulty import Fault, FaultyRuntime
from zeropod.container.events import Exited, Stdio
from zeropod.container.phase import Phase
from zeropod.container.state import State
from zeropod.errors import ZeropodError

_EVERY_FAULT = pytest.mark.parametrize("fault", list(Fault))
_SPEC = b'{"cwd": "/", "args": ["/bin/sleep", "1000"], "user": {"uid": 0, "gid": 0}}'
_DEADLINE_S = 1.5
"""Of every verb, so that one which hangs does so for no longer than that."""


@pytest.fixture(autouse=True)
def _short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("oci.runtime.QUICK_S", "oci.runtime.SLOW_S"),
        *("checkpoint.runc._DEADLINE_S", "checkpoint.runc._DUMP_DEADLINE_S"),
    ):
        monkeypatch.setattr(f"zeropod.{name}", _DEADLINE_S)


@pytest.fixture
def runtime(tmp_path: Path) -> FaultyRuntime:
    return FaultyRuntime(tmp_path / "faulty")


def _exits(box: Box) -> list[int]:
    return [
        event.exit.status
        for event in box.events
        if isinstance(event, Exited) and event.process_id == box.container.id
    ]


async def _ends(box: Box) -> None:
    """By SIGKILL, once, and nothing keeps it from being deleted."""
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    assert _exits(box) == [137]
    await box.container.delete()


async def _exec(box: Box) -> None:
    """One that fails to start does not run, whatever it would have done."""
    await box.container.add_exec("e1", _SPEC, Stdio())
    try:
        await box.container.start("e1")
        await box.container.kill(9, exec_id="e1")
        await box.container.wait("e1")
    finally:
        await box.container.delete("e1")
    assert len(await box.container.pids()) == 1


async def _pause(box: Box) -> None:
    try:
        await box.container.pause()
    finally:
        if box.container.state_now is State.PAUSED:
            await box.container.resume()


async def _update(box: Box) -> None:
    await box.container.update({"memory": {"limit": 600 << 20}})


async def _signal(box: Box) -> None:
    await box.container.kill(28)  # SIGWINCH: the app does not mind


_AWAKE: dict[str, Callable[[Box], Awaitable[None]]] = {
    "exec": _exec,
    "pause": _pause,
    "update": _update,
    "kill": _signal,
}


@_EVERY_FAULT
async def test_resuming(make_box: MakeBox, runtime: FaultyRuntime, fault: Fault) -> None:
    """Either the caller is told and may try again, or it goes on."""
    box = await make_box(binary=runtime.path)
    boot, count = await box.ask()
    await box.container.pause()
    runtime.inject("resume", fault)
    if fault.startswith("late"):
        await box.container.resume()
    else:
        with pytest.raises(ZeropodError):
            await box.container.resume()
        await box.container.resume()
    assert runtime.happened("resume")
    assert await box.ask() == (boot, count + 1)
    await box.asleep()
    await _ends(box)


@_EVERY_FAULT
@pytest.mark.parametrize("verb", list(_AWAKE))
async def test_awake(make_box: MakeBox, runtime: FaultyRuntime, fault: Fault, verb: str) -> None:
    """The caller is told, and the app goes on; it can sleep and wake afterwards."""
    box = await make_box(binary=runtime.path)
    box.scaler.inhibit("until the fault has happened").__enter__()
    boot, count = await box.ask()
    runtime.inject(verb, fault)
    with pytest.raises(ZeropodError):
        await _AWAKE[verb](box)
    assert runtime.happened(verb)
    assert await box.ask() == (boot, count + 1)
    assert len(await box.container.pids()) == 1
    await _AWAKE[verb](box)
    assert await box.ask() == (boot, count + 2)
    await _ends(box)


@_EVERY_FAULT
async def test_going_down(make_box: MakeBox, runtime: FaultyRuntime, fault: Fault) -> None:
    """The app stays awake, or sleeps if the dump was whole; its memory is the same."""
    box = await make_box(binary=runtime.path, scaledown_duration="300ms")
    boot, count = await box.ask()
    runtime.inject("checkpoint", fault)
    while not (box.scaler.history.checkpoints.errors or box.scaler.phase is Phase.ASLEEP):
        await box.scaler._next()
    assert runtime.happened("checkpoint")
    assert (box.scaler.phase is Phase.ASLEEP) is fault.startswith("late")
    assert await box.ask() == (boot, count + 1)
    await box.asleep()
    assert await box.ask() == (boot, count + 2)
    assert not box.doubled()
    await _ends(box)


@_EVERY_FAULT
@pytest.mark.parametrize("cause", ["connection", "exec"])
async def test_waking(make_box: MakeBox, runtime: FaultyRuntime, fault: Fault, cause: str) -> None:
    """What failed before the app ran is tried again. Later, its state is lost, and that is told."""
    box = await make_box(binary=runtime.path)
    boot, count = await box.ask()
    await box.asleep()
    runtime.inject("restore", fault)
    if cause == "exec":
        await _exec(box)
        now = await box.ask()
    else:
        with contextlib.suppress(ConnectionError, ValueError):  # it had reached what was killed
            await box.ask()
        await box.scaler.ensure_awake("the test")
        now = await box.ask()
        count += 1
    assert runtime.happened("restore")
    assert box.scaler.history.restores.errors
    if fault.startswith("late"):
        assert now[0] != boot
    else:
        assert now == (boot, count + 1)
    assert not box.doubled()
    await box.asleep()
    assert (await box.ask())[0] == now[0]
    await _ends(box)


@_EVERY_FAULT
async def test_asleep_and_killed(make_box: MakeBox, runtime: FaultyRuntime, fault: Fault) -> None:
    """It ends although its removal from the runtime fails at first."""
    box = await make_box(binary=runtime.path)
    await box.asleep()
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    runtime.inject("delete", fault)
    with contextlib.suppress(ZeropodError):
        await box.container.delete()
    assert runtime.happened("delete")
    if box.container.state_now is not State.DELETED:
        await box.container.delete()
    assert _exits(box) == [137]


@_EVERY_FAULT
async def test_being_started(make_box: MakeBox, runtime: FaultyRuntime, fault: Fault) -> None:
    """As under the stock shim a start that failed leaves it to be deleted, or to be tried again."""
    box = await make_box(binary=runtime.path, start=False)
    runtime.inject("start", fault)
    with pytest.raises(ZeropodError):
        await box.container.start()
    assert runtime.happened("start")
    if not fault.startswith("late"):
        await box.container.start()
        await box.scaler.until(Phase.AWAKE)
        await box.ask()
        await _ends(box)
        return
    await box.container.delete()
    assert len(_exits(box)) <= 1


@_EVERY_FAULT
async def test_being_created(make_box: MakeBox, runtime: FaultyRuntime, fault: Fault) -> None:
    """Nothing is left of it; the same one can be created again."""
    runtime.inject("create", fault)
    with pytest.raises(ZeropodError):
        await make_box(binary=runtime.path, start=False)
    assert runtime.happened("create")
