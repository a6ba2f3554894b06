"""The engine without checkpoints: the processes are killed, and started afresh on wake-up.

What `disable-checkpointing` asks for, and what `restore-failure: restart` falls back to. The state
in memory is lost; the container's files stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from zeropod._fastpath._activator import RestorePlan
from zeropod.checkpoint import debris
from zeropod.checkpoint.engine import Stdio, Target
from zeropod.checkpoint.image import ImageDir
from zeropod.errors import CheckpointFailed, NotFound, RestoreFailed, ZeropodError
from zeropod.oci.reaper import Reaper
from zeropod.oci.runtime import Runtime

_DEADLINE_S = 60.0
_KILLED = 128 + signal.SIGKILL


class FreshEngine:
    """See `engine.Engine`. Images are an empty directory here."""

    name = "fresh"

    def __init__(self, runtime: Runtime, reaper: Reaper) -> None:
        self._runtime = runtime
        self._reaper = reaper

    def annotations(self) -> Mapping[str, str]:
        return {}

    async def pre_dump(self, target: Target, images: ImageDir) -> None:
        """There is no memory to keep."""

    async def checkpoint(self, target: Target, images: ImageDir) -> None:
        try:
            ended = self._reaper.watch(target.init_pid)
            with contextlib.suppress(NotFound):
                await self._runtime.kill(target.id, target.bundle.path, signal.SIGKILL)
            exit = await asyncio.shield(ended)
            if exit.status != _KILLED:  # by itself, before we could: containerd must hear of it
                raise CheckpointFailed(f"scale down {target.id}: it has ended by itself")
            await debris.clear(target, self._runtime, images.dump, 0)
        except ZeropodError as error:
            raise CheckpointFailed(f"scale down {target.id}: {error}") from error

    def plan(self, target: Target, images: ImageDir, stdio: Stdio) -> RestorePlan:
        path = target.bundle.path
        _pid_file(target).unlink(missing_ok=True)
        rest = ["--detach", "--bundle", str(path), "--pid-file", str(_pid_file(target))]
        rest.append("--no-subreaper")
        if self._runtime.options.no_pivot_root:
            rest.append("--no-pivot")
        if self._runtime.options.no_new_keyring:
            rest.append("--no-new-keyring")
        log = str(self._runtime.log_file(path))
        argv = self._runtime.argv("run", log, *rest, target.id)
        return RestorePlan(argv, env=dict(os.environ), cwd=str(path), stdio=stdio)

    async def finish(self, target: Target, images: ImageDir, pid: int) -> int:
        with self._reaper.command():
            try:
                async with asyncio.timeout(_DEADLINE_S):
                    status = (await asyncio.shield(self._reaper.watch(pid))).status
                self._reaper.reap(pid)
                if status == 0:
                    return int(_pid_file(target).read_text())
                said = self._runtime.last_error(target.bundle.path)
                raise RestoreFailed(f"start {target.id} afresh: {said or f'status {status}'}")
            except BaseException as error:
                await self.abort(target, images, pid)
                if isinstance(error, (OSError, ValueError)):  # TimeoutError is an OSError
                    text = f"start {target.id} afresh: {error or 'did not end in time'}"
                    raise RestoreFailed(text) from error
                raise

    async def abort(self, target: Target, images: ImageDir, pid: int) -> None:
        await debris.clear(target, self._runtime, images.attempt, pid)
        if pid:
            self._reaper.reap(pid)


def _pid_file(target: Target) -> Path:
    return target.bundle.path / "fresh.pid"
