"""Apps that listen in other ways than on one socket for everybody; docs/activation.md, "Races"."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from lab import waiting
from tests.criu.conftest import Box, MakeBox
from tests.criu.opener import ENDED, Opener
from zeropod.activator import ports
from zeropod.container.phase import Phase

way = pytest.mark.parametrize("activation", ["park", "splice"])
_TIMEOUT = {"connect_timeout": "1s"}


async def _asked(box: Box, host: str, count: int) -> list[tuple[str, int]]:
    """The answers of so many at once."""
    with contextlib.ExitStack() as stack:
        openers = [stack.enter_context(Opener(box, host)) for _ in range(count)]
        return await asyncio.gather(*(opener.answer() for opener in openers))


@way
@pytest.mark.parametrize(
    ("listens", "there", "elsewhere"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
        ("::1", "::1", "127.0.0.1"),
        ("::", "::1", "127.0.0.1"),
    ],
    ids=["loopback", "loopback of IPv6", "IPv6 alone"],
)
async def test_one_address_alone(
    make_box: MakeBox, activation: str, listens: str, there: str, elsewhere: str
) -> None:
    """Who comes to it wakes the app and is served; who comes to another is refused, as awake."""
    box = await make_box(activation=activation, env={"HOST": listens}, **_TIMEOUT)
    with box.scaler.inhibit("the test"):
        ((boot, count),) = await _asked(box, there, 1)
        with pytest.raises(ENDED), Opener(box, elsewhere) as opener:
            await opener.answer()
    await box.asleep()
    assert await _asked(box, there, 1) == [(boot, count + 1)]
    await box.asleep()
    with pytest.raises(ENDED), Opener(box, elsewhere) as opener:
        await opener.answer()
    await box.asleep()
    assert await _asked(box, there, 1) == [(boot, count + 2)]
    assert not box.doubled()


async def test_a_unix_socket_alone(make_box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be woken by nobody, so it does not sleep, and says why."""
    looks: list[frozenset[int]] = []
    look = ports.listening_ports

    def counted(pids: object) -> frozenset[int]:
        looks.append(look(pids))  # type: ignore[arg-type]
        return looks[-1]

    monkeypatch.setattr(ports, "listening_ports", counted)
    box = await make_box(start=False, env={"HOST": "/tmp/socket"})
    await box.container.start()
    socket = box.container.bundle.rootfs / "tmp/socket"
    await asyncio.to_thread(waiting.until, "its socket", socket.exists)
    seen = len(looks)
    await asyncio.to_thread(waiting.until, "two looks", lambda: len(looks) >= seen + 2)
    assert not any(looks)
    assert box.scaler.phase is Phase.FINDING
    assert box.scaler.reason == "it listens on no TCP port"
    assert box.container.status().reason == box.scaler.reason


@way
async def test_several_workers_with_a_socket_each(make_box: MakeBox, activation: str) -> None:
    """SO_REUSEPORT: all of them are back, with their memory, and each opener has one of them."""
    box = await make_box(activation=activation, env={"WORKERS": "4"}, scaledown_duration="1s")
    counts: dict[str, int] = {}
    asked = 0
    while len(counts) < 4:
        assert asked < 1000, f"of four workers only {sorted(counts)} answer"
        counts |= await _asked(box, "127.0.0.1", 20)
        asked += 20
    for _ in range(3):
        await box.asleep()
        for boot, count in sorted(await _asked(box, "127.0.0.1", 200)):
            counts[boot] += 1
            assert count == counts[boot], "a memory of another time"
        assert len(counts) == 4
        asked += 200
        await box.scaler.until(Phase.AWAKE)
        assert len(await box.container.pids()) == 4
    assert sum(counts.values()) == asked
    assert box.scaler.history.restores.count == 3 and not box.doubled()


@way
async def test_a_backlog_of_one(make_box: MakeBox, activation: str) -> None:
    box = await make_box(activation=activation, env={"BACKLOG": "1"}, scaledown_duration="1s")
    boot, count = await box.ask()
    await box.asleep()
    answers = await _asked(box, "127.0.0.1", 20)
    assert sorted(answers) == [(boot, count + n + 1) for n in range(20)]
    await box.scaler.until(Phase.AWAKE)
    assert box.scaler.history.restores.count == 1


@pytest.fixture
async def moved(make_box: MakeBox, activation: str) -> AsyncIterator[Box]:
    """One that began afresh, on another port."""
    box = await make_box(activation=activation, disable_checkpointing="true", **_TIMEOUT)
    await box.ask()
    await box.asleep()
    (box.ticks / "port").write_text("8081")
    yield box


@way
async def test_elsewhere_after_a_wake_up(moved: Box) -> None:
    """Only who begins afresh can be: a restored socket is where it was. Refused after
    `connect-timeout`; then, as awake, at once."""
    with pytest.raises(ENDED), Opener(moved) as opener:
        await opener.answer()
    with moved.scaler.inhibit("the test"):
        await moved.scaler.ensure_awake("the test")
        with pytest.raises(ConnectionRefusedError), Opener(moved) as opener:
            await opener.answer()
    await moved.asleep()
    (moved.ticks / "port").unlink()
    with Opener(moved) as opener:
        assert (await opener.answer())[1] == 1
