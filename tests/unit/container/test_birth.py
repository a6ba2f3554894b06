"""A container that begins as a checkpoint."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.unit.container.conftest import Make
from tests.unit.container.test_stdio import Fifos, fifos  # noqa: F401
from zeropod.container.events import Created, Deleted, Exited, Started, Stdio
from zeropod.container.process import Status
from zeropod.errors import NotFound, RuntimeFailed


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (images := tmp_path / "checkpoint").mkdir()
    (images / "args").write_text(json.dumps(["sh", "-c", "echo restored; exec sleep 1000"]))
    return images


async def test_it_lives_from_the_start_on(make: Make, checkpoint: Path) -> None:
    box = await make(checkpoint=checkpoint)
    assert box.container.state().status is Status.CREATED
    assert box.container.state().pid == 0
    assert await box.container.pids() == []
    assert not (box.path / "calls").exists()
    pid = await box.container.start()
    assert box.container.state().status is Status.RUNNING
    assert box.container.state().pid == pid
    created, started = box.events
    assert isinstance(created, Created)
    assert created.pid == 0
    assert isinstance(started, Started)
    assert started.pid == pid
    os.kill(pid, signal.SIGTERM)
    assert (await box.container.wait()).status == 143
    await box.container.delete()
    assert [type(event) for event in box.events[2:]] == [Exited, Deleted]


async def test_its_output_goes_where_it_shall(
    make: Make,
    checkpoint: Path,
    fifos: Fifos,  # noqa: F811
) -> None:
    box = await make(checkpoint=checkpoint, stdio=fifos.stdio())
    await box.container.start()
    assert b"restored\n" in await fifos.read_until(b"restored\n")


async def test_it_may_have_a_terminal(
    make: Make,
    checkpoint: Path,
    fifos: Fifos,  # noqa: F811
) -> None:
    box = await make(checkpoint=checkpoint, stdio=fifos.stdio(terminal=True))
    await box.container.start()
    await box.container.resize(80, 24)
    assert b"restored\r\n" in await fifos.read_until(b"restored\r\n")


async def test_a_broken_one_says_why_and_is_removed(make: Make, checkpoint: Path) -> None:
    """With CRIU's own words; what the attempt made is taken away, and a second one may follow."""
    log = "(00.01) Error (criu/image.c:12): bad magic in core-1.img\n"
    (checkpoint / "broken").write_text(log)
    box = await make(checkpoint=checkpoint)
    with pytest.raises(RuntimeFailed, match=r"bad magic in core-1\.img"):
        await box.container.start()
    assert box.calls()[-1] == "delete --force"
    assert not (box.path / "criu-work").exists()
    assert box.container.state().status is Status.CREATED
    (checkpoint / "broken").unlink()
    await box.container.start()
    assert box.container.state().status is Status.RUNNING


async def test_one_that_is_never_started_is_removed(make: Make, checkpoint: Path) -> None:
    """No exit is told, for nothing has lived."""
    box = await make(checkpoint=checkpoint)
    with pytest.raises(NotFound):
        await box.container.kill(9)
    gone = await box.container.delete()
    assert (gone.pid, gone.exit.status) == (0, 0)
    assert (await box.container.wait()).status == 0
    assert [type(event) for event in box.events] == [Created, Deleted]


async def test_there_must_be_one(make: Make, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint in"):
        await make(checkpoint=tmp_path / "nowhere", stdio=Stdio())


async def test_one_without_its_terminal_does_not_run_on(
    make: Make,
    checkpoint: Path,
    fifos: Fifos,  # noqa: F811
    tmp_path: Path,
) -> None:
    box = await make(checkpoint=checkpoint, stdio=fifos.stdio(terminal=True))
    runtime = tmp_path / "runc"
    working = runtime.read_text()
    silent = working.replace("        if master >= 0:\n            terminal(master)\n", "")
    assert silent != working
    runtime.write_text(silent)
    with pytest.raises(RuntimeFailed, match="the runtime sent no terminal"):
        await box.container.start()
    assert box.container.state().pid == 0
    runtime.write_text(working)
    await box.container.start()
    await fifos.read_until(b"restored")
