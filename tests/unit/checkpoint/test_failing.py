"""Steps that fail or are cut off half-way, one by one."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zeropod.checkpoint import census, debris, runc
from zeropod.checkpoint.census import Census, Member
from zeropod.checkpoint.engine import Target
from zeropod.checkpoint.fresh import FreshEngine
from zeropod.checkpoint.image import ImageStore
from zeropod.errors import CheckpointFailed
from zeropod.oci.reaper import Exit

_NOTHING: Any = None


async def test_clearing_goes_on_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, done = asyncio.Event(), []

    async def slow(*_: object) -> None:
        await go_on.wait()
        done.append(True)

    monkeypatch.setattr(debris, "_clear", slow)
    clearing = asyncio.create_task(debris.clear(_NOTHING, _NOTHING, _NOTHING, 0))
    for _ in range(3):
        await asyncio.wait([clearing], timeout=0.01)
        clearing.cancel()
    assert not clearing.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await clearing
    assert done == [True]


def test_images_on_a_disk_that_went_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore.open(str(tmp_path / "i"), "c1")
    images = store.new()
    (images.images / "core-1.img").write_bytes(b"x")
    images.seal()
    images.mark_consumed()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        patch.setattr(Path, "rename", refuse)
        images.unmark()
        assert images.consumed  # so they are not tried again
        assert store.keep_failed(images) is None
    store.close()


@pytest.mark.parametrize("status", [0, 1, 137])
async def test_an_exit_of_its_own_is_no_scale_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """`disable-checkpointing`: only our own SIGKILL makes a sleeper."""
    ended = asyncio.get_running_loop().create_future()
    ended.set_result(Exit(status, 1))
    cleared = []

    async def kill(*_: object) -> None:
        pass

    async def clear(*_: object) -> None:
        cleared.append(True)

    monkeypatch.setattr(debris, "clear", clear)
    runtime: Any = SimpleNamespace(kill=kill)
    reaper: Any = SimpleNamespace(watch=lambda pid: ended)
    bundle: Any = SimpleNamespace(path=tmp_path)
    images: Any = SimpleNamespace(dump=tmp_path)
    checkpoint = FreshEngine(runtime, reaper).checkpoint(Target("c1", bundle, 1), images)
    if status == 137:
        await checkpoint
    else:
        with pytest.raises(CheckpointFailed, match="has ended by itself"):
            await checkpoint
    assert cleared == [True] * (status == 137)


def test_after_a_failed_dump_only_what_ran_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    own, ours = (process.pid for process in sleepers)
    try:
        for process in sleepers:
            process.send_signal(19)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        tree = tuple(Member(process.pid, "sleep") for process in sleepers)
        monkeypatch.setattr(census, "take", lambda *_, **__: Census(tree, ()))
        bundle: Any = SimpleNamespace(namespace_path=lambda kind: "")
        runc._let_run(Target("c1", bundle, own), frozenset({own}))
        assert os.waitid(os.P_PID, ours, os.WCONTINUED).si_pid == ours
        assert runc._state(own) == "T"
    finally:
        for process in sleepers:
            process.kill()
            process.wait()
