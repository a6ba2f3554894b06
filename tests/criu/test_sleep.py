"""Sleep and wake for real: memory, output, and what the container sees of itself."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.criu.conftest import MakeBox
from zeropod.container.events import Exited, Stdio
from zeropod.container.phase import Phase

_STATUS = (
    "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
    "Uid", "Gid", "Groups", "Umask", "SigIgn", "SigCgt", "SigBlk",
)  # fmt: skip
_SHELL = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}


@pytest.mark.parametrize("cgroup_namespace", [False, True])
async def test_memory_survives_many_sleeps(make_box: MakeBox, cgroup_namespace: bool) -> None:
    box = await make_box(cgroup_namespace=cgroup_namespace)
    boot, count = await box.ask()
    first = box.container.init.pid
    for number in range(10):
        await box.asleep()
        assert Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        assert await box.ask() == (boot, count + number + 1)
    assert box.container.init.pid == first != box.pid
    assert not box.doubled()
    assert box.lines() == [f"request {n + 1}" for n in range(count + 10)]
    assert not [event for event in box.events if isinstance(event, Exited)]


async def test_the_runtime_knows_the_restored_container(make_box: MakeBox) -> None:
    box = await make_box()
    await box.asleep()
    with box.scaler.inhibit("test"):
        await box.ask()
        await box.scaler.until(Phase.AWAKE)
        state = await box.container.runtime.state("c1", box.container.bundle.path)
        assert (state["status"], state["pid"]) == ("running", box.pid)
        process = {**_SHELL, "args": ["/bin/sh", "-c", "exit 3"]}
        await box.container.add_exec("e1", json.dumps(process).encode(), Stdio())
        await box.container.start("e1")
        assert (await box.container.wait("e1")).status == 3
        await box.container.delete("e1")
        limits = box.container.bundle.path / "limits.json"
        limits.write_text(json.dumps({"memory": {"limit": 300 << 20}}))
        await box.container.runtime.update("c1", box.container.bundle.path, limits)
        await box.container.kill(9)
        assert (await box.container.wait()).status == 137
        await box.container.delete()
    exits = [event for event in box.events if isinstance(event, Exited)]
    assert [event.process_id for event in exits] == ["e1", "c1"]


async def test_exec_wakes(make_box: MakeBox) -> None:
    box = await make_box()
    boot, count = await box.ask()
    await box.asleep()
    process = {**_SHELL, "args": ["/bin/true"]}
    await box.container.add_exec("e1", json.dumps(process).encode(), Stdio())
    await box.container.start("e1")
    assert (await box.container.wait("e1")).status == 0
    assert await box.ask() == (boot, count + 1)


@pytest.mark.parametrize("cgroup_namespace", [False, True])
async def test_the_inside_view_stays(make_box: MakeBox, cgroup_namespace: bool) -> None:
    box = await make_box(cgroup_namespace=cgroup_namespace)
    before = _inside(box.pid, cgroup_namespace)
    for _ in range(2):
        await box.asleep()
        with box.scaler.inhibit("test"):
            await box.ask()
            await box.scaler.until(Phase.AWAKE)
            assert _inside(box.pid, cgroup_namespace) == before


async def test_hundreds_at_once_share_one_restore(make_box: MakeBox) -> None:
    box = await make_box()
    boot, count = await box.ask()
    await box.asleep()
    answers = await asyncio.gather(*(box.ask() for _ in range(200)))
    assert sorted(answers) == sorted((boot, count + n + 1) for n in range(200))
    assert box.scaler.history.restores.count == 1


async def test_without_checkpoints_it_starts_afresh(make_box: MakeBox) -> None:
    box = await make_box(disable_checkpointing="true")
    boot, _ = await box.ask()
    await box.asleep()
    fresh, count = await box.ask()
    assert fresh != boot and count == 1
    assert not [event for event in box.events if isinstance(event, Exited)]


async def test_sigkill_asleep(make_box: MakeBox) -> None:
    box = await make_box()
    await box.asleep()
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    await box.container.delete()
    assert list(box.images.iterdir()) == []


def _inside(pid: int, cgroup_namespace: bool) -> dict[str, object]:
    """What must not change. New by nature: mnt, pid and time namespaces; with a cgroup namespace of
    its own, that one, too. Masked files are bound to a null device in the image directory in place
    of the container's, so of those mounts only the place is compared, and that none is the host's.
    """
    proc = Path(f"/proc/{pid}")
    names = ["ipc", "net", "uts", "user", *([] if cgroup_namespace else ["cgroup"])]
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    seen: dict[str, object] = {name: str((proc / "ns" / name).readlink()) for name in names}
    seen |= {key: status[key] for key in _STATUS if key in status}
    seen["mounts"] = sorted(
        " ".join(fields[4:5] if fields[3].endswith("/null") else fields[3:])
        for fields in map(str.split, (proc / "mountinfo").read_text().splitlines())
    )
    masked = (proc / "root/proc/keys").stat()
    seen["/proc/keys"] = masked.st_rdev
    assert not os.path.samestat(masked, Path("/dev/null").stat())
    for name in ("cgroup", "limits", "oom_score_adj", "environ", "cmdline"):
        seen[name] = (proc / name).read_bytes()
    for line in (proc / "cgroup").read_text().splitlines():
        _, controller, path = line.split(":")
        for limit in ("memory.limit_in_bytes", "pids.max", "devices.list"):
            file = Path(f"/sys/fs/cgroup/{controller}{path}/{limit}")
            if controller and file.exists():
                seen[f"{controller}/{limit}"] = file.read_text()
    return seen


async def test_large_images_are_removed_in_the_background(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeropod.container.scaler._LARGE_BYTES", 0)
    box = await make_box()
    boot, count = await box.ask()
    for number in range(3):
        await box.asleep()
        assert await box.ask() == (boot, count + number + 1)
    with box.scaler.inhibit("test"):
        await box.scaler.ensure_awake("test")
        removing = [task for task in box.scaler._tasks if task.get_name().startswith("remove")]
        if removing:
            await asyncio.wait(removing)
        assert not list(box.images.glob("*/.removed-*"))
