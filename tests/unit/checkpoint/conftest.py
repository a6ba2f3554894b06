"""A scaler among fakes, and a process that has signal handlers."""

from __future__ import annotations

import subprocess
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
from zeropod.config import Settings
from zeropod.container.phase import Phase
from zeropod.container.scaler import Scaler

TRAPS = 'trap "exit 0" TERM; trap "" HUP'


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
    script = f"{TRAPS}; echo; while read x; do :; done"
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
