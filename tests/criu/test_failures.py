"""Injected failures: the app is unharmed, or restarted by policy, and no instruction runs twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.criu.conftest import Box, MakeBox
from zeropod.container.events import Exited, Stdio
from zeropod.container.phase import Phase
from zeropod.container.report import History
from zeropod.errors import RestoreFailed
from zeropod.oci.mounts import unmount_all

_SHELL = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}


async def _fails_to_sleep(box: Box, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The next dump fails and says so; the app goes on with its memory."""
    boot, count = await box.ask()
    while not box.scaler.history.checkpoints.errors:
        await box.scaler._next()
    assert text in caplog.text
    assert await box.ask() == (boot, count + 1)
    assert not [event for event in box.events if isinstance(event, Exited)]


async def test_criu_is_missing(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box = await make_box(scaledown_duration="500ms")
    path = [d for d in os.environ["PATH"].split(":") if not (Path(d) / "criu").exists()]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", ":".join(path))
        await _fails_to_sleep(box, "criu is not installed or not in PATH", caplog)
    await box.asleep()  # backed off, then tried again


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """40 MiB, to be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], check=True)
    yield disk
    unmount_all(disk)


async def test_the_disk_is_known_to_be_too_small(
    make_box: MakeBox, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = await make_box(images=small_disk / "i", scaledown_duration="500ms")
    (small_disk / "ballast").write_bytes(b"x" * (20 << 20))
    await _fails_to_sleep(box, "MiB are free on the disk of", caplog)


async def test_the_disk_fills_up_in_mid_dump(
    make_box: MakeBox,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    box = await make_box(images=small_disk / "i", scaledown_duration="500ms")
    (small_disk / "ballast").write_bytes(b"x" * (36 << 20))
    monkeypatch.setattr("zeropod.checkpoint.census.Census.memory_bytes", lambda self: -(16 << 20))
    await _fails_to_sleep(box, "no space left on the disk of", caplog)
    (small_disk / "ballast").unlink()
    await box.asleep()
    assert not box.doubled()


async def test_a_stranger_is_named(make_box: MakeBox, caplog: pytest.LogCaptureFixture) -> None:
    """A process that was put into the container by somebody else."""
    box = await make_box(scaledown_duration="500ms")
    enter = ["nsenter", "-t", str(box.pid), "-p", "-m", "/usr/bin/sleep", "60"]
    with subprocess.Popen(enter) as stranger:  # noqa: ASYNC220
        await _fails_to_sleep(box, "sleep (pid", caplog)
        for pid in Path(f"/proc/{stranger.pid}/task/{stranger.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    await box.asleep()


async def test_an_exec_delays_the_sleep(make_box: MakeBox) -> None:
    box = await make_box()
    with box.scaler.inhibit("test"):
        await box.ask()
        process = {**_SHELL, "args": ["/bin/sleep", "60"]}
        await box.container.add_exec("e1", json.dumps(process).encode(), Stdio())
        await box.container.start("e1")
    box.scaler._on_idle()
    await asyncio.gather(*box.scaler._tasks)
    assert box.scaler.phase is Phase.AWAKE and box.scaler.history == History()
    await box.container.kill(9, exec_id="e1")
    await box.asleep()


def _truncate(images: Path) -> None:
    os.truncate(next(images.glob("pages-*.img")), 4096)


def _remove(images: Path) -> None:
    (images / "pstree.img").unlink()


def _garbage(images: Path) -> None:
    file = next(images.glob("core-*.img"))
    file.write_bytes(random.Random(1).randbytes(file.stat().st_size))


@pytest.mark.parametrize("harm", [_truncate, _remove, _garbage])
async def test_corrupt_images_are_not_restored(
    make_box: MakeBox, harm: object, caplog: pytest.LogCaptureFixture
) -> None:
    box = await make_box()
    boot, _ = await box.ask()
    await box.asleep()
    harm(box.newest())  # type: ignore[operator]
    fresh, count = await box.ask()
    assert fresh != boot and count == 1
    assert "its state is lost" in caplog.text and str(box.images) in caplog.text
    assert (box.images / "t.c1" / "failed" / "images").is_dir()
    assert not box.doubled()


async def test_policy_fail_ends_it(make_box: MakeBox) -> None:
    box = await make_box(restore_failure="fail")
    await box.asleep()
    _truncate(box.newest())
    with pytest.raises(ConnectionError):
        await box.ask()
    assert (await box.container.wait()).status == 128
    with pytest.raises(RestoreFailed):
        await box.scaler.ensure_awake("test")
    await box.container.delete()


async def test_a_proved_failure_is_tried_again(make_box: MakeBox) -> None:
    """CRIU refuses once, before any process runs: a file that the app has open is away."""
    box = await make_box()
    boot, count = await box.ask()
    await box.asleep()
    script = box.container.bundle.root / "app.py"
    script.rename(script.with_name("away"))
    finish = box.scaler.engine.finish
    attempts: list[bool] = []

    async def put_back(*given: object) -> int:
        try:
            return await finish(*given)  # type: ignore[arg-type]
        except RestoreFailed as error:
            attempts.append(error.retryable)
            script.with_name("away").rename(script)
            raise

    box.scaler.engine.finish = put_back  # type: ignore[method-assign]
    assert await box.ask() == (boot, count + 1)
    assert attempts == [True]
    assert not box.doubled()


@pytest.mark.parametrize("seed", range(4))
async def test_a_restore_killed_at_a_random_moment(make_box: MakeBox, seed: int) -> None:
    """Whatever is left answers, with its memory or afresh, and no memory has run twice."""
    box = await make_box()
    chance = random.Random(seed)
    finish = box.scaler.engine.finish
    delays_s = [chance.uniform(0, 0.09) for _ in range(6)]

    async def killed(target: object, images: object, pid: int) -> int:
        if delays_s:
            loop = asyncio.get_running_loop()
            loop.call_later(delays_s.pop(), _kill_group, pid)
        return await finish(target, images, pid)  # type: ignore[arg-type]

    box.scaler.engine.finish = killed  # type: ignore[method-assign]
    while delays_s:
        await box.asleep()
        failed = box.scaler.history.restores.errors
        try:
            await box.ask()
        except (ConnectionError, ValueError):
            # Killed when the app ran already and had this connection: it ends with the app.
            await box.scaler.ensure_awake("the test")
            assert box.scaler.history.restores.errors > failed
            await box.ask()
    assert not box.doubled()
    assert not [event for event in box.events if isinstance(event, Exited)]


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.05])
async def test_sigkill_in_mid_restore(make_box: MakeBox, delay_s: float) -> None:
    box = await make_box()
    await box.asleep()
    waking = asyncio.create_task(box.scaler.ensure_awake("test"))
    await asyncio.wait([waking], timeout=delay_s)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    assert loop.time() - began < 5, "the restore has been waited for"
    await asyncio.wait([waking])
    waking.exception()
    await box.container.delete()
    assert list(box.images.iterdir()) == []


async def test_a_restore_that_hangs_is_killed(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A truncated pages image makes CRIU's restorer spin; the check of the images is off here."""
    box = await make_box()
    boot, _ = await box.ask()
    await box.asleep()
    monkeypatch.setattr("zeropod.checkpoint.image.ImageDir.verify", lambda self: None)
    monkeypatch.setattr("zeropod.checkpoint.runc._DEADLINE_S", 5.0)
    _truncate(box.newest())
    loop = asyncio.get_running_loop()
    began = loop.time()
    fresh, _ = await box.ask()
    assert fresh != boot
    assert "did not get on in time and was killed" in caplog.text
    assert loop.time() - began < 50  # what spins gets no extension, or it would be 65 s
    assert not box.doubled()


# The runtime asks CRIU for its version first, and then moves the second one into the cgroup.
_SLOW_CRIU = """#!/bin/sh
if [ -e {folder}/hold ] && ! mkdir {folder}/$PPID; then
    until grep -q /c1$ /proc/self/cgroup; do :; done
    while [ -e {folder}/hold ]; do touch {folder}/waits; read -r _ < /proc/uptime; sleep 0.1; done
fi
exec {criu} "$@"
"""


async def test_a_restore_that_is_slow_but_gets_on_keeps_its_memory(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a busy node: it takes three times the deadline, and reads all the while."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "criu").write_text(_SLOW_CRIU.format(folder=folder, criu=shutil.which("criu")))
    (folder / "criu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("zeropod.checkpoint.runc._DEADLINE_S", 5.0)
    box = await make_box()
    boot, count = await box.ask()
    await box.asleep()
    (folder / "hold").touch()
    answer = asyncio.create_task(box.ask())
    await asyncio.wait([answer], timeout=15)
    assert (folder / "waits").exists() and not answer.done()
    (folder / "hold").unlink()
    assert await answer == (boot, count + 1)
    assert box.scaler.history.restores.errors == 0
    assert not box.doubled()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
