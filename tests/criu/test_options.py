"""The runtime options are in every command line that they concern, before and after a sleep."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.criu.conftest import MakeBox
from zeropod.container.events import Stdio
from zeropod.container.phase import Phase

_ROOT = "/run/another"
_EXEC = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"]}
_NO_PIVOT = {"create", "run", "restore"}
_NO_KEYRING = {"create", "run"}
"""runc restore has no such flag."""


@pytest.mark.parametrize("fresh", [False, True])
async def test_each_is_where_it_must_be(make_box: MakeBox, tmp_path: Path, fresh: bool) -> None:
    calls = tmp_path / "calls"
    binary = tmp_path / "wrapped"
    binary.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec runc "$@"\n')
    binary.chmod(0o755)
    given = {"root": _ROOT, "no_pivot_root": True, "no_new_keyring": True}
    owner = {"io_uid": 1000, "io_gid": 1001}
    annotations = {"disable_checkpointing": str(fresh).lower()}
    box = await make_box(binary=binary, options={**given, **owner}, **annotations)
    boot, count = await box.ask()
    await box.container.add_exec("e1", json.dumps(_EXEC).encode(), Stdio())
    await box.container.start("e1")
    await box.container.wait("e1")
    await box.asleep()
    with box.scaler.inhibit("the test"):
        found, again = await box.ask()
        assert fresh or (found, again) == (boot, count + 1)
        await box.scaler.until(Phase.AWAKE)
        await box.container.pause()
        await box.container.resume()
        await box.container.update({"memory": {"limit": 400 << 20}})
        for fd in (0, 1):  # the runtime gives them to the process's user then, uid 0
            assert Path(f"/proc/{box.pid}/fd/{fd}").stat().st_gid == 1001
        await box.container.kill(9)
        assert (await asyncio.wait_for(box.container.wait(), 60)).status == 137
        await box.container.delete()
    lines = [line.split() for line in calls.read_text().splitlines()]
    seen = {_verb(line): line for line in lines}
    sleep = {"run"} if fresh else {"checkpoint", "restore"}
    assert {"create", "start", "exec", "pause", "resume", "update", "kill", "delete"} <= set(seen)
    assert sleep <= set(seen)
    for verb, line in seen.items():
        assert line[:2] == ["--root", f"{_ROOT}/t"], line
        assert ("--no-pivot" in line) is (verb in _NO_PIVOT), line
        assert ("--no-new-keyring" in line) is (verb in _NO_KEYRING), line


def _verb(line: list[str]) -> str:
    """The first word that is neither a flag nor the value of one."""
    words = iter(line)
    for word in words:
        if not word.startswith("--"):
            return word
        if word != "--systemd-cgroup":
            next(words)
    raise AssertionError(line)


async def test_systemds_cgroups_are_asked_for(make_box: MakeBox, tmp_path: Path) -> None:
    """Of a runtime that only notes it: there may be no systemd here."""
    calls = tmp_path / "calls"
    binary = tmp_path / "noting"
    binary.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexit 1\n')
    binary.chmod(0o755)
    with pytest.raises(Exception, match="create c1"):
        await make_box(binary=binary, options={"systemd_cgroup": True}, start=False)
    lines = calls.read_text().splitlines()
    assert {_verb(line.split()) for line in lines} == {"create", "delete"}
    assert all("--systemd-cgroup" in line for line in lines)
