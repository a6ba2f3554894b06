"""A container over a runtime that starts real processes without isolation; no root needed."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zeropod.config import NodeSettings
from zeropod.container.container import Container, CreateRequest
from zeropod.container.events import Deleted, Event, Exited, Stdio
from zeropod.container.pod import Pod
from zeropod.container.state import State
from zeropod.oci import reaper
from zeropod.oci.runtime import RuntimeOptions

_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def _nothing_mounted(target: str, flags: int) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A subreaper, as a shim is, that in the end has no child and no descriptor more."""
    monkeypatch.setattr("zeropod.oci.syscalls.umount2", _nothing_mounted)  # or it needs root
    children, fds = set(reaper.children()), _descriptors()
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    left = set(reaper.children()) - children
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert left == set()
    assert _descriptors() == fds


def _descriptors() -> dict[str, str]:
    """All but the event loop's."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            target = str(entry.readlink())
            if not target.startswith(("socket:", "anon_inode:[eventpoll]")):
                found[entry.name] = target
    return found


@dataclass
class Box:
    """One container and its surroundings."""

    path: Path
    pod: Pod
    events: list[Event]
    container: Container = field(init=False)

    @property
    def pid(self) -> int:
        return self.container.init.live_pid

    def calls(self) -> list[str]:
        """What the runtime was asked for: verbs with flags and arguments."""
        return (self.path / "calls").read_text().splitlines()

    def told(self, kind: type = Exited) -> list[str]:
        """Whose events of a kind came, in order."""
        return [
            event.process_id  # type: ignore[union-attr]
            for event in self.events
            if isinstance(event, kind)
        ]

    def fail(self, verb: str, text: str) -> None:
        (self.path / f"fail-{verb}").write_text(text)

    def hold(self, verb: str, *, after: bool = False) -> Callable[[], Any]:
        """The next run of a verb waits, before it has done its work or after it.

        Await what is returned: it is there; then close the fd.
        """
        gate = self.path / f"hold-{'after-' if after else ''}{verb}"
        os.mkfifo(gate)

        async def reached() -> int:
            fd = await asyncio.to_thread(os.open, gate, os.O_WRONLY | os.O_CLOEXEC)
            gate.unlink()
            return fd

        return reached

    async def exec(self, exec_id: str, *args: str) -> int:
        """Run one to its start. Its pid."""
        spec = json.dumps({"args": args}).encode()
        await self.container.add_exec(exec_id, spec, Stdio())
        return await self.container.start(exec_id)

    async def over(self) -> None:
        """Init has ended, and the container knows it."""
        await self.pod.reaper.watch(self.container.init.pid)


Make = Callable[..., Any]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """make(*args, pid=…): a created container whose init is ``args``.

    ``pid``: the path of its pid namespace, "" for one of its own, None for the host's.
    """
    boxes: list[Box] = []
    binary = tmp_path / "runc"
    source = Path(__file__).with_name("runtime.py").read_text()
    binary.write_text(f"#!{sys.executable} -IS\n{source}")
    binary.chmod(0o755)

    async def made(
        *args: str,
        pid: str | None = "",
        stdio: Stdio | None = None,
        make_scaler: Any = None,
        checkpoint: Path | None = None,
        **annotations: str,
    ) -> Box:
        path = tmp_path / f"bundle-{len(boxes)}"
        path.mkdir()
        namespaces = [{"type": "network", "path": "/nobody/ns/net"}]
        if pid is not None:
            namespaces.append({"type": "pid", "path": pid})
        config = {
            "process": {"args": args or ("cat", "/dev/null")},
            "linux": {"namespaces": namespaces, "cgroupsPath": "/zp-unit/c1"},
            "annotations": {
                f"zeropod.ctrox.dev/{key.replace('_', '-')}": value
                for key, value in annotations.items()
            },
        }
        (path / "config.json").write_text(json.dumps(config))
        events: list[Event] = []
        pod = Pod(
            asyncio.get_running_loop(),
            namespace="ns",
            node=NodeSettings(image_root=str(tmp_path / "i")),
            emit=events.append,
            make_scaler=make_scaler,
        )
        box = Box(path, pod, events)
        boxes.append(box)
        options = RuntimeOptions(binary_name=str(binary), root=str(tmp_path / "state"))
        box.container = await Container.create(
            CreateRequest(
                *("c1", str(path), stdio or Stdio(), options),
                checkpoint=str(checkpoint or ""),
            ),
            pod,
        )
        return box

    yield made
    for box in boxes:
        await _end(box)


async def _end(box: Box) -> None:
    """As containerd cleans up: kill what lives, delete."""
    if hasattr(box, "container"):
        for file in box.path.glob("fail-*"):
            file.unlink()
        for pid in _all_pids(box):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if box.container.state_now is State.RUNNING:
            await asyncio.wait_for(box.container.wait(), 10)
        if box.told(Deleted)[-1:] != ["c1"]:
            await box.container.delete()
        await box.container.close()
    await box.pod.close()


def _all_pids(box: Box) -> list[int]:
    state = Path(box.container.runtime.root) / "c1" / "pids"
    return [int(pid) for pid in state.read_text().split()] if state.exists() else []
