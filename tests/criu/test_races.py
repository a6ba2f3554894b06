"""Whoever comes in the middle of a scale-down or of a wake-up, by both ways; docs/activation.md."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.criu.conftest import Box, MakeBox
from tests.criu.moments import Moments
from tests.criu.opener import ENDED, Opener
from zeropod.activator import activator
from zeropod.container.events import Exited, Stdio
from zeropod.container.phase import Phase

_SHELL = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
_IDLE = {"scaledown_duration": "500ms"}
_OF_A_RESTORE = ("post-setup-namespaces", "post-resume")

way = pytest.mark.parametrize("activation", ["park", "splice"])


@pytest.fixture
def moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moments]:
    made = Moments.made(tmp_path / "moments", monkeypatch)
    yield made
    made.close()


def _exits(box: Box) -> list[int]:
    return [event.exit.status for event in box.events if isinstance(event, Exited)]


async def _exec(box: Box) -> int:
    """The status of a short one."""
    spec = json.dumps({**_SHELL, "args": ["/bin/sh", "-c", "exit 3"]})
    await box.container.add_exec("e1", spec.encode(), Stdio())
    await box.container.start("e1")
    return (await box.container.wait("e1")).status


# -- a scale-down ----------------------------------------------------------------------------------


def _in_scaler(box: Box, step: str, when: str, act: Callable[[], None]) -> None:
    """Act once, before or after a step of the scale-down that is ours and not CRIU's."""
    owner = {"hold": box.scaler._group, "checkpoint": box.scaler.engine}.get(step, box.scaler)
    assert owner is not None
    original = getattr(owner, step)

    def once() -> None:
        setattr(owner, step, original)
        act()

    def plain(*given: object) -> object:
        if when == "before":
            once()
            return original(*given)
        result = original(*given)
        once()
        return result

    async def asynchronous(*given: object) -> None:
        if when == "before":
            once()
        await original(*given)
        if when == "after":
            once()

    setattr(owner, step, asynchronous if step == "checkpoint" else plain)


@pytest.fixture
def slotless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port groups whose methods can be replaced, one by one."""

    class Group(activator.PortGroup):
        pass

    monkeypatch.setattr(activator, "PortGroup", Group)


@pytest.mark.usefixtures("slotless")
@way
@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("hold", "before"),  # the app's own: it would be cut off
        ("hold", "after"),
        ("checkpoint", "before"),
        ("checkpoint", "after"),  # the processes are gone
        ("_prepare", "before"),  # marked asleep, nothing armed
        ("_prepare", "after"),
    ],
)
async def test_an_opener_between_two_steps_of_a_scale_down(
    make_box: MakeBox, activation: str, step: str, when: str
) -> None:
    box = await make_box(activation=activation, **_IDLE)
    boot, count = await box.ask()
    openers: list[Opener] = []

    def opens() -> None:
        openers.append(Opener(box))
        if (step, when) not in (("hold", "before"), ("_prepare", "after")):
            openers[0].arrives()

    _in_scaler(box, step, when, opens)
    while not openers:
        await box.scaler._next()
    await box.scaler.past(Phase.DUMPING)
    with openers[0] as opener:
        assert await opener.answer() == (boot, count + 1)
    if step == "hold":
        assert box.scaler.history.checkpoints.count == 0, "he came before the dump"
    assert box.scaler.history.checkpoints.errors == 0
    assert not box.doubled() and not _exits(box)
    await box.asleep()
    assert await box.ask() == (boot, count + 2)


@way
@pytest.mark.parametrize("moment", ["pre-dump", "post-dump"])
async def test_an_opener_while_criu_dumps(
    make_box: MakeBox, moments: Moments, activation: str, moment: str
) -> None:
    """Before anything is frozen, and when all is written and the processes are about to die."""
    box = await make_box(activation=activation, **_IDLE)
    boot, count = await box.ask()
    moments.stand_at(moment)
    await moments.reached()
    with Opener(box) as opener:
        opener.arrives()
        answer = asyncio.create_task(opener.answer())
        assert not (await asyncio.wait([answer], timeout=0))[0]
        moments.go_on()
        assert await answer == (boot, count + 1)
    await box.scaler.until(Phase.AWAKE)
    assert box.scaler.history.checkpoints.count == box.scaler.history.restores.count == 1
    assert not box.doubled() and not _exits(box)


@pytest.mark.parametrize("moment", ["pre-dump", "post-dump"])
async def test_an_exec_while_criu_dumps(make_box: MakeBox, moments: Moments, moment: str) -> None:
    """It waits for the dump, for that is not broken off, and then wakes the app."""
    box = await make_box(**_IDLE)
    boot, count = await box.ask()
    moments.stand_at(moment)
    await moments.reached()
    running = asyncio.create_task(_exec(box))
    assert not (await asyncio.wait([running], timeout=0))[0]
    moments.go_on()
    assert await running == 3
    assert await box.ask() == (boot, count + 1)
    assert box.scaler.history.checkpoints.errors == 0 and not box.doubled()


# -- a wake-up -------------------------------------------------------------------------------------


@way
@pytest.mark.parametrize("moment", _OF_A_RESTORE)
async def test_an_exec_and_an_opener_share_a_wake_up(
    make_box: MakeBox, moments: Moments, activation: str, moment: str
) -> None:
    """Whoever comes first has begun it; the other one comes in the middle of it."""
    box = await make_box(activation=activation, **_IDLE)
    boot, count = await box.ask()
    await box.asleep()
    moments.stand_at(moment)
    with Opener(box) as opener:
        answer = asyncio.create_task(opener.answer())
        await moments.reached()
        running = asyncio.create_task(_exec(box))
        with Opener(box) as other:
            later = asyncio.create_task(other.answer())
            await asyncio.wait([running], timeout=0)
            moments.go_on()
            assert await running == 3
            answers = sorted([await answer, await later])
    assert answers == [(boot, count + 1), (boot, count + 2)]
    assert box.scaler.history.restores.count == 1
    assert not box.doubled()


@way
@pytest.mark.parametrize("moment", ["fired", *_OF_A_RESTORE])
async def test_killed_in_a_wake_up_that_openers_wait_for(
    make_box: MakeBox, moments: Moments, activation: str, moment: str
) -> None:
    """Nobody hangs, the exit is told once, nothing is left (which the fixtures see to)."""
    box = await make_box(activation=activation)
    boot, _ = await box.ask()
    await box.asleep()
    with ExitStack() as stack:
        if moment in _OF_A_RESTORE:
            moments.stand_at(moment)
        openers = [stack.enter_context(Opener(box)) for _ in range(20)]
        answers = [asyncio.create_task(opener.answer()) for opener in openers]
        if moment in _OF_A_RESTORE:
            await moments.reached()
            assert box.waiting() > 0 or moment == "post-resume"
        else:
            await box.scaler.until(Phase.WAKING)
        await box.container.kill(9)
        assert (await box.container.wait()).status == 137
        await box.container.delete()
        for met in await asyncio.gather(*answers, return_exceptions=True):
            reached = moment == "post-resume" and isinstance(met, tuple) and met[0] == boot
            assert isinstance(met, ENDED) or reached
    assert _exits(box) == [137] and not box.doubled()
    assert list(box.images.iterdir()) == []


@way
@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_an_opener_who_is_gone_before_the_app_is_back(
    make_box: MakeBox, moments: Moments, activation: str, how: str
) -> None:
    """He has woken it; it is awake for nobody, and falls asleep again."""
    box = await make_box(activation=activation, **_IDLE)
    boot, count = await box.ask()
    await box.asleep()
    moments.stand_at("post-setup-namespaces")
    opener = Opener(box)
    opener.arrives()
    await moments.reached()
    if how == "resets":
        opener.reset()
    else:
        opener.socket.close()
    moments.go_on()
    await box.scaler.until(Phase.AWAKE)
    await box.asleep()
    assert box.scaler.history.restores.count == 1
    assert box.waiting() == 0
    now = await box.ask()
    # His connection may have got to the app, which then has counted him.
    assert now in [(boot, count + 1), (boot, count + 2)]


@way
async def test_an_app_that_crashes_as_soon_as_it_is_back(
    make_box: MakeBox, activation: str
) -> None:
    """As if it had crashed awake: its own code is told, once, and nothing begins afresh."""
    box = await make_box(activation=activation, restore_failure="fail")
    await box.ask()
    await box.asleep()
    (box.ticks / "exit").write_text("7")
    with ExitStack() as stack:
        openers = [stack.enter_context(Opener(box)) for _ in range(20)]
        met = await asyncio.gather(*(one.answer() for one in openers), return_exceptions=True)
        assert all(isinstance(one, ENDED) for one in met), met
    assert (await box.container.wait()).status == 7
    assert _exits(box) == [7] and not box.doubled()
    await box.container.delete()
    assert _exits(box) == [7]
