"""Memory written ahead of the dump where the kernel tracks it; a plain dump where it does not.

Which of both is tested depends on the kernel; the virtual machine of `make vm-test` always has the
first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.criu.conftest import MakeBox
from tests.criu.faulty import Fault, FaultyRuntime

_BALLAST = 8 << 20  # of app.py, which never writes to it again


def _tracked() -> bool:
    check = ["criu", "check", "--feature", "mem_dirty_track"]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


def _pages(images: Path) -> int:
    return sum(file.stat().st_size for file in images.glob("pages-*.img"))


async def test_memory_is_written_ahead_or_the_dump_is_plain(
    make_box: MakeBox, caplog: pytest.LogCaptureFixture
) -> None:
    tracked = _tracked()
    box = await make_box(pre_dump="true")
    boot, count = await box.ask()
    for number in range(3):
        await box.asleep()
        images = box.newest()
        ahead = images.parent / "pre-dump"
        assert ahead.exists() == (images / "parent").exists() == tracked
        if tracked:
            assert _pages(ahead) > _BALLAST > _pages(images)
        else:
            assert _pages(images) > _BALLAST
        assert await box.ask() == (boot, count + number + 1)
    assert not box.doubled()
    warnings = [text for text in caplog.messages if "does not track dirty pages" in text]
    assert len(warnings) == (0 if tracked else 1)


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.KILL, Fault.LATE_ERROR])
async def test_a_pre_dump_that_fails_is_made_up_for(
    make_box: MakeBox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
) -> None:
    """Also on a kernel that does not track: CRIU is made to say that it does."""
    says_yes = tmp_path / "says-yes"
    says_yes.mkdir()
    criu = says_yes / "criu"
    criu.write_text(f'#!/bin/sh\n[ "$1" = check ] || exec {shutil.which("criu")} "$@"\n')
    criu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{says_yes}:{os.environ['PATH']}")
    runtime = FaultyRuntime(tmp_path / "faulty")
    box = await make_box(pre_dump="true", binary=runtime.path)
    with box.scaler.inhibit("test"):
        boot, count = await box.ask()
        await box.scaler.ensure_awake("test")
        runtime.inject("checkpoint", fault)
    await box.asleep()
    assert runtime.happened("checkpoint")
    assert "the pre-dump failed, a plain dump follows" in caplog.text
    images = box.newest()
    assert not (images.parent / "pre-dump").exists()
    assert _pages(images) > _BALLAST
    assert await box.ask() == (boot, count + 1)
    assert not box.scaler.history.checkpoints.errors
    assert not box.doubled()
