"""Pause, Resume and Update, in every state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.container.conftest import Box, Make
from zeropod.container.container import Container
from zeropod.container.disposition import Delivery
from zeropod.container.events import Paused, Resumed
from zeropod.container.phase import Phase
from zeropod.container.process import Status
from zeropod.container.state import State
from zeropod.errors import IllegalTransition, RuntimeFailed

_FOREVER = ("sleep", "60")
_LIMIT = {"memory": {"limit": 300 << 20}, "cpu": {"shares": 0, "cpus": ""}, "pids": None}


class _Scaler:
    """Notes what keeps the container awake."""

    def __init__(self, container: Container) -> None:
        self.engine = SimpleNamespace(annotations=dict)
        self.container = container
        self.phase = Phase.AWAKE
        self.reason = ""
        self.why: list[str] = []
        self.woken = 0

    @contextlib.contextmanager
    def inhibit(self, reason: str, *, counts: bool = False) -> Iterator[None]:
        self.why.append(reason)
        try:
            yield
        finally:
            self.why.remove(reason)

    async def ensure_awake(self, cause: str) -> None:
        self.woken += 1
        if self.container.state_now in (State.SCALED_DOWN, State.WAKING):
            self.container.state_now = State.RUNNING

    async def kill_asleep(self, number: int) -> Delivery:
        return Delivery.DUE

    def input_came(self) -> None: ...

    def signalled(self, number: int) -> None: ...

    def started(self) -> None: ...

    def ended(self) -> None: ...

    async def close(self) -> None: ...


async def _running(make: Make) -> Box:
    box: Box = await make(*_FOREVER, make_scaler=_Scaler)
    await box.container.start()
    return box


def _events(box: Box) -> list[Any]:
    return [event for event in box.events if isinstance(event, Paused | Resumed)]


# -- pause and resume ----------------------------------------------------------------------------


async def test_pause_and_resume(make: Make) -> None:
    box = await _running(make)
    await box.container.pause()
    assert box.container.state().status is Status.PAUSED
    assert box.container.scaler.why == ["paused"]
    with pytest.raises(IllegalTransition, match="cannot pause a paused container c1"):
        await box.container.pause()
    with pytest.raises(IllegalTransition, match="cannot exec in a paused container c1"):
        await box.container.add_exec("e1", b"{}", box.container.init.stdio)
    await box.container.resume()
    assert box.container.state().status is Status.RUNNING
    assert box.container.scaler.why == []
    with pytest.raises(IllegalTransition, match="cannot resume a running container c1"):
        await box.container.resume()
    assert _events(box) == [Paused("c1"), Resumed("c1")]


async def test_a_paused_container_can_be_killed(make: Make) -> None:
    box = await _running(make)
    await box.container.pause()
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    assert box.container.scaler.why == []
    assert "resume" in box.calls()  # or its cgroup could not be removed
    assert _events(box) == [Paused("c1")]


async def test_a_pause_that_fails_leaves_it_running(make: Make) -> None:
    box = await _running(make)
    box.fail("pause", "no freezer")
    with pytest.raises(RuntimeFailed, match="no freezer"):
        await box.container.pause()
    assert box.container.state().status is Status.RUNNING
    assert box.container.scaler.why == [] and _events(box) == []


async def test_what_ends_while_it_is_paused_is_not_left_frozen(make: Make) -> None:
    box = await _running(make)
    reached = box.hold("pause")
    pause = asyncio.create_task(box.container.pause())
    gate = await reached()
    os.kill(box.pid, signal.SIGKILL)
    assert (await box.container.wait()).status == 137
    os.close(gate)
    with pytest.raises(IllegalTransition, match="cannot pause a stopped container c1"):
        await pause
    assert box.calls()[-1] == "resume"
    assert box.container.scaler.why == [] and _events(box) == []


async def test_a_sleeper_is_woken_to_be_paused(make: Make) -> None:
    box = await _running(make)
    box.container.state_now = State.SCALED_DOWN
    await box.container.pause()
    assert box.container.scaler.woken == 1
    assert box.container.state().status is Status.PAUSED
    await box.container.resume()


async def test_before_its_start_it_is_not_paused(make: Make) -> None:
    box = await make(*_FOREVER)
    with pytest.raises(IllegalTransition, match="cannot pause a created container c1"):
        await box.container.pause()


async def test_an_exec_before_the_start(make: Make) -> None:
    """As under the stock shim: what is created has its namespaces."""
    box = await make(*_FOREVER)
    await box.exec("e1", "sh", "-c", "exit 4")
    assert (await box.container.wait("e1")).status == 4
    await box.container.start()


# -- update --------------------------------------------------------------------------------------


def _limits(box: Box) -> Any:
    return json.loads((box.path / "config.json").read_text())["linux"].get("resources")


def _updates(box: Box) -> list[Any]:
    file = box.path / "updates"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("state", [State.CREATED, State.RUNNING, State.PAUSED])
async def test_an_update_is_set_and_kept_for_restores(make: Make, state: State) -> None:
    box: Box = await make(*_FOREVER, make_scaler=_Scaler)
    if state is not State.CREATED:
        await box.container.start()
    if state is State.PAUSED:
        await box.container.pause()
    await box.container.update(_LIMIT)
    assert _updates(box) == [_LIMIT]
    assert _limits(box)["memory"] == {"limit": 300 << 20}
    await box.container.update({"memory": {"swap": 1 << 30}, "unified": {"memory.high": "1"}})
    assert _limits(box) == {
        "memory": {"limit": 300 << 20, "swap": 1 << 30},
        "cpu": {},
        "unified": {"memory.high": "1"},
    }
    assert not (box.path / "resources.json").exists()
    if state is State.PAUSED:
        await box.container.resume()


async def test_an_update_that_is_refused_changes_nothing(make: Make) -> None:
    box = await _running(make)
    box.fail("update", "memory in use")
    with pytest.raises(RuntimeFailed, match="memory in use"):
        await box.container.update(_LIMIT)
    assert _limits(box) is None and box.container.scaler.why == []


async def test_an_update_asleep_is_noted_and_set_after_the_restore(make: Make) -> None:
    box = await _running(make)
    box.container.state_now = State.SCALED_DOWN
    await box.container.update(_LIMIT)
    assert _updates(box) == [] and _limits(box)["memory"] == {"limit": 300 << 20}
    for state in (State.WAKING, State.RUNNING):
        box.container.state_now = state
        box.container.limits.awake() if state is State.RUNNING else None
    await asyncio.wait(box.pod.tasks)
    assert [update["memory"] for update in _updates(box)] == [{"limit": 300 << 20}]
    box.container.limits.awake()
    assert len(_updates(box)) == 1


async def test_an_update_on_the_way_back_holds_when_it_returns(make: Make) -> None:
    box = await _running(make)
    box.container.state_now = State.WAKING
    await box.container.update(_LIMIT)
    assert box.container.scaler.woken == 1
    assert _updates(box) == [_LIMIT]


async def test_what_has_ended_is_not_updated(make: Make) -> None:
    box = await _running(make)
    os.kill(box.pid, signal.SIGKILL)
    await box.container.wait()
    with pytest.raises(IllegalTransition, match="cannot update a stopped container c1"):
        await box.container.update(_LIMIT)
