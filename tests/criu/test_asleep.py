"""What each call does to a container that is asleep, with real runc and CRIU.

What wakes it is proved by its memory: the boot id, and a count that goes on. What does not wake it
has restored nothing: init has had one process, and no restore has been counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.criu.conftest import Box, MakeBox
from zeropod.container.events import Exited, Stdio
from zeropod.container.phase import Phase
from zeropod.container.process import Status
from zeropod.container.state import State
from zeropod.errors import IllegalTransition

_LIMIT_S = 60
_TRUE = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"]}
_HANDLED = 40
"""A real-time signal."""


class Output:
    """What the app has written, read as it comes."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._seen = ""

    async def has(self, line: str) -> None:
        """Returns when the app has written this line."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_LIMIT_S):
            while line not in self._seen.splitlines():
                ready = loop.create_future()
                loop.add_reader(self._box.output, ready.set_result, None)
                try:
                    await ready
                finally:
                    loop.remove_reader(self._box.output)
                self._seen += os.read(self._box.output, 1 << 16).decode()


def _sleeps_on(box: Box) -> None:
    """Nothing was restored, nor is it being."""
    assert box.scaler.phase is Phase.ASLEEP
    _was_not_restored(box)


def _was_not_restored(box: Box) -> None:
    restores = box.scaler.history.restores
    assert (restores.count, restores.errors) == (0, 0)
    assert box.pid == 0


def _exits(box: Box) -> list[int]:
    return [event.exit.status for event in box.events if isinstance(event, Exited)]


# -- what only asks ------------------------------------------------------------------------------


async def test_questions_are_answered_from_what_is_known(make_box: MakeBox) -> None:
    box = await make_box()
    first = box.pid
    with box.scaler.inhibit("the test"):
        before = await box.container.stats()
    await box.asleep()
    now = box.container.state()
    assert (now.status, now.pid, now.exit) == (Status.RUNNING, first, None)
    assert [found.pid for found in await box.container.pids()] == [first]
    usage = await box.container.stats()
    assert usage.cpu_ns >= before.cpu_ns > 0
    assert usage.cpu_user_ns >= before.cpu_user_ns and usage.cpu_kernel_ns >= before.cpu_kernel_ns
    assert 0 < usage.memory < before.memory
    _sleeps_on(box)


async def test_cpu_time_never_goes_backwards(make_box: MakeBox) -> None:
    box = await make_box()
    seen = [(await box.container.stats()).cpu_ns]
    for _ in range(3):
        await box.asleep()
        seen.append((await box.container.stats()).cpu_ns)
        with box.scaler.inhibit("the test"):
            await box.ask()
            await box.scaler.until(Phase.AWAKE)
            seen.append((await box.container.stats()).cpu_ns)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


async def test_wait_returns_at_the_real_end(make_box: MakeBox) -> None:
    box = await make_box()
    waiting = asyncio.create_task(box.container.wait())
    await box.asleep()
    await box.ask()
    await box.asleep()
    assert not waiting.done()
    await box.container.kill(9)
    assert (await asyncio.wait_for(waiting, _LIMIT_S)).status == 137


async def test_the_first_pid_stays_reserved(make_box: MakeBox) -> None:
    """A zombie of ours, which every signal that asks finds, until Delete."""
    box = await make_box()
    first = box.pid
    for _ in range(2):
        await box.asleep()
        _is_zombie(first)
        with box.scaler.inhibit("the test"):
            await box.ask()
            await box.scaler.until(Phase.AWAKE)
            _is_zombie(first)
            assert box.pid != first == box.container.state().pid
    await box.container.kill(9)
    await box.container.wait()
    os.kill(first, 0)
    gone = await box.container.delete()
    assert gone.pid == first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def _is_zombie(pid: int) -> None:
    os.kill(pid, 0)
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert (parts[0], int(parts[1])) == ("Z", os.getpid())


# -- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, _HANDLED])
async def test_a_signal_that_it_handles_restores_it(make_box: MakeBox, number: int) -> None:
    box = await make_box(env={"HANDLES": str(int(number))})
    boot, count = await box.ask()
    await box.asleep()
    await box.container.kill(number)
    await Output(box).has(f"signal {int(number)} at {count}")
    assert await box.ask() == (boot, count + 1)
    assert _exits(box) == [] and not box.doubled()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGCHLD, signal.SIGWINCH, 0])
async def test_a_signal_that_it_ignores_means_nothing(make_box: MakeBox, number: int) -> None:
    """Be it by its own will or by the kernel's."""
    box = await make_box(env={"IGNORES": str(int(signal.SIGHUP))})
    boot, count = await box.ask()
    await box.asleep()
    await box.container.kill(number)
    _sleeps_on(box)
    assert await box.ask() == (boot, count + 1)


@pytest.mark.parametrize(
    ("number", "handles", "stop_asleep"),
    [
        (signal.SIGKILL, "", "restore"),
        (signal.SIGUSR2, "", "restore"),
        (_HANDLED, "", "restore"),
        (signal.SIGTERM, "", "restore"),
        (signal.SIGTERM, "15", "discard"),
    ],
)
async def test_any_other_ends_it_without_a_restore(
    make_box: MakeBox, number: int, handles: str, stop_asleep: str
) -> None:
    box = await make_box(env={"HANDLES": handles}, stop_asleep=stop_asleep)
    await box.ask()
    await box.asleep()
    await box.container.kill(number)
    assert (await asyncio.wait_for(box.container.wait(), _LIMIT_S)).status == 128 + number
    _was_not_restored(box)
    assert _exits(box) == [128 + number]
    await box.container.delete()
    assert list(box.images.iterdir()) == []


async def test_sigstop_stops_what_it_has_restored(make_box: MakeBox) -> None:
    box = await make_box()
    boot, count = await box.ask()
    await box.asleep()
    await box.container.kill(signal.SIGSTOP)
    assert box.scaler.phase is Phase.AWAKE
    state = Path(f"/proc/{box.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "T"
    await box.container.kill(signal.SIGCONT)
    assert await box.ask() == (boot, count + 1)


# -- what needs its processes --------------------------------------------------------------------


async def _pause(box: Box, _: Path) -> None:
    await box.container.pause()
    assert box.container.state().status is Status.PAUSED
    await box.container.resume()


async def _checkpoint(box: Box, folder: Path) -> None:
    path = folder / "checkpoint"
    await box.container.checkpoint(str(path), ["--leave-running"])
    assert (path / "inventory.img").exists()


async def _exec(box: Box, _: Path) -> None:
    await box.container.add_exec("e1", json.dumps(_TRUE).encode(), Stdio())
    await box.container.start("e1")
    assert (await box.container.wait("e1")).status == 0
    await box.container.delete("e1")


Call = Callable[[Box, Path], Awaitable[None]]


@pytest.mark.parametrize("call", [_pause, _checkpoint, _exec])
async def test_what_needs_its_processes_restores_it(
    make_box: MakeBox, tmp_path: Path, call: Call
) -> None:
    box = await make_box()
    boot, count = await box.ask()
    await box.asleep()
    await asyncio.wait_for(call(box, tmp_path), _LIMIT_S)
    assert box.scaler.history.restores.count == 1
    assert await box.ask() == (boot, count + 1)
    assert _exits(box)[-1:] != [137] and not box.doubled()
    await box.asleep()
    assert await box.ask() == (boot, count + 2)


async def test_update_and_resize_need_none(make_box: MakeBox) -> None:
    box = await make_box()
    boot, count = await box.ask()
    await box.asleep()
    await box.container.update({"memory": {"limit": 300 << 20}})
    await box.container.resize(80, 24)
    _sleeps_on(box)
    assert await box.ask() == (boot, count + 1)


async def test_what_is_illegal_for_what_runs_is_illegal(make_box: MakeBox) -> None:
    box = await make_box()
    await box.asleep()
    for call in (box.container.start, box.container.resume, box.container.delete):
        with pytest.raises(IllegalTransition):
            await call()  # type: ignore[operator]
    _sleeps_on(box)
    assert box.container.state_now is State.SCALED_DOWN


# -- stdin ---------------------------------------------------------------------------------------


async def test_data_on_stdin_wakes_it(make_box: MakeBox) -> None:
    box = await make_box(env={"READS": "1"})
    output = Output(box)
    boot, count = await box.ask()
    for number in range(3):
        await box.asleep()
        os.write(box.input, f"line {number}\n".encode())
        await output.has(f"read line {number} at {count}")
        count += 1
        assert await box.ask() == (boot, count)
    assert _exits(box) == [] and not box.doubled()


async def test_data_that_comes_in_mid_dump_is_read(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the dump saw of it: it is read once, by the memory that slept."""
    box = await make_box(env={"READS": "1"})
    output = Output(box)
    boot, count = await box.ask()
    checkpoint = box.scaler.engine.checkpoint

    async def with_data(*given: object) -> None:
        monkeypatch.undo()
        os.write(box.input, b"before\n")
        await checkpoint(*given)  # type: ignore[arg-type]
        os.write(box.input, b"after\n")

    monkeypatch.setattr(box.scaler.engine, "checkpoint", with_data)
    await output.has(f"read before at {count}")
    await output.has(f"read after at {count}")
    assert await box.ask() == (boot, count + 1)
    await box.asleep()
    os.write(box.input, b"last\n")
    await output.has(f"read last at {count + 1}")
    assert output._seen.count("read before") == output._seen.count("read after") == 1


async def test_more_than_the_pipe_holds_arrives_whole(make_box: MakeBox) -> None:
    box = await make_box(env={"READS": "1"})
    await box.ask()
    await box.asleep()
    data, sent = b"x" * 300_000 + b"\nlast\n", 0
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_LIMIT_S):
        while sent < len(data):
            try:
                sent += os.write(box.input, data[sent:])
            except BlockingIOError:
                room = loop.create_future()
                loop.add_writer(box.input, room.set_result, None)
                await room
                loop.remove_writer(box.input)
    await Output(box).has("read last at 1")


async def test_the_end_of_stdin_is_told_at_once(make_box: MakeBox) -> None:
    """After what was written before, as to one that runs."""
    box = await make_box(env={"READS": "1"})
    output = Output(box)
    boot, count = await box.ask()
    await box.asleep()
    os.write(box.input, b"word\n")
    await box.container.close_io()
    await output.has(f"read word at {count}")
    await output.has(f"end of stdin at {count}")
    await box.asleep()
    assert await box.ask() == (boot, count + 1)
