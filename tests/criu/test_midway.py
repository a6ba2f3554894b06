"""CRIU itself is killed, or hangs, in the middle of a dump and of a restore; the runtime goes on.

The moments are those at which CRIU runs its action scripts: there it stands at a step that its log
names, and waits for us.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.criu.conftest import Box, MakeBox
from zeropod.checkpoint import criu
from zeropod.container.events import Exited
from zeropod.container.phase import Phase

_SCRIPT = """#!/bin/sh
if [ "$CRTOOLS_SCRIPT_ACTION" = {moment} ] && mkdir {done}; then
    kill -{signal} $PPID
fi
"""
_FAULTS = pytest.mark.parametrize("fault", ["KILL", "STOP"], ids=["killed", "hangs"])
_DEADLINE_S = 8.0
"""Of a dump and of a restore, so that one that hangs does so for no longer than that."""


class Faults:
    """CRIU's next time at a moment has the fault."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._script = folder / "script"
        self._done = folder / "done"
        self._script.write_text("#!/bin/sh\n")
        self._script.chmod(0o755)
        self._config = criu.config

    def config(self, *external: object) -> str:
        return f"{self._config(*external)}action-script {self._script}\n"  # type: ignore[arg-type]

    def inject(self, moment: str, signal: str) -> None:
        text = _SCRIPT.format(moment=moment, done=self._done, signal=signal)
        fresh = self._script.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.rename(self._script)

    def happened(self) -> bool:
        return self._done.exists()


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    made = Faults(tmp_path / "faults")
    monkeypatch.setattr(criu, "config", made.config)
    for name in ("_DEADLINE_S", "_DUMP_DEADLINE_S"):
        monkeypatch.setattr(f"zeropod.checkpoint.runc.{name}", _DEADLINE_S)
    return made


def _exits(box: Box) -> list[int]:
    return [event.exit.status for event in box.events if isinstance(event, Exited)]


async def _until(box: Box, condition: Callable[[], bool]) -> None:
    while not condition():
        await box.scaler._next()


async def _ends(box: Box) -> None:
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    assert _exits(box) == [137]
    assert not box.doubled()
    await box.container.delete()


@_FAULTS
async def test_a_dump(make_box: MakeBox, faults: Faults, fault: str) -> None:
    """All is written, and all is frozen: the app goes on with its memory, and sleeps later."""
    box = await make_box(scaledown_duration="300ms")
    boot, count = await box.ask()
    faults.inject("post-dump", fault)
    await _until(box, lambda: box.scaler.history.checkpoints.errors > 0)
    assert faults.happened()
    assert await box.ask() == (boot, count + 1)
    await box.asleep()
    assert await box.ask() == (boot, count + 2)
    await _ends(box)


@_FAULTS
async def test_a_restore_before_the_app_runs(make_box: MakeBox, faults: Faults, fault: str) -> None:
    """Nothing proves that the app did not run: its state is lost, which is told."""
    box = await make_box()
    boot, _ = await box.ask()
    await box.asleep()
    faults.inject("post-setup-namespaces", fault)
    fresh, count = await box.ask()
    assert faults.happened()
    assert box.scaler.history.restores.errors
    assert fresh != boot and count == 1
    await box.asleep()
    assert await box.ask() == (fresh, 2)
    await _ends(box)


@_FAULTS
async def test_a_restore_when_the_app_runs(make_box: MakeBox, faults: Faults, fault: str) -> None:
    """The same memory never runs twice, and what runs afterwards is one app."""
    box = await make_box()
    boot, _ = await box.ask()
    await box.asleep()
    faults.inject("post-resume", fault)
    with contextlib.suppress(ConnectionError, ValueError):  # it may reach the one that is killed
        await box.ask()
    await box.scaler.ensure_awake("the test")
    now = await box.ask()
    assert faults.happened()
    assert box.scaler.phase is Phase.AWAKE
    assert len(await box.container.pids()) == 1
    if box.scaler.history.restores.errors:
        assert now[0] != boot
    await box.asleep()
    assert (await box.ask())[0] == now[0]
    await _ends(box)
