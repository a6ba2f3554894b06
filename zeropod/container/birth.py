"""How a container's init comes to be: created and started, or restored from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zeropod.checkpoint import portable
from zeropod.container.stdio import ProcessIO, console_for
from zeropod.errors import NotFound

if TYPE_CHECKING:
    from zeropod.container.container import Container


class Birth(Protocol):
    """Both raise RuntimeFailed or DeadlineExceeded; after one of them init has its pid."""

    async def create(self, io: ProcessIO) -> None: ...
    async def start(self, io: ProcessIO) -> None: ...


class Created:
    """The runtime creates init, which waits to be started."""

    def __init__(self, container: Container) -> None:
        self._container = container

    async def create(self, io: ProcessIO) -> None:
        container = self._container
        folder = container.bundle.path
        with console_for(io, folder, "init") as console:
            pid = await container.runtime.create(
                container.id,
                folder,
                pid_file=folder / "init.pid",
                stdio=io.child_fds,
                console=console,
            )
            container.init.runs_as(pid)

    async def start(self, _io: ProcessIO) -> None:
        await self._container.runtime.start(self._container.id, self._container.bundle.path)


class Restored:
    """Nothing lives before the start, as under the stock shim; then the runtime restores it."""

    def __init__(self, container: Container, checkpoint: Path, parent: str) -> None:
        self._container = container
        self._checkpoint = checkpoint
        self._parent = parent

    async def create(self, _io: ProcessIO) -> None:
        if not self._checkpoint.is_dir():
            raise NotFound(f"create {self._container.id}: no checkpoint in {self._checkpoint}")

    async def start(self, io: ProcessIO) -> None:
        container = self._container
        pid = 0
        try:
            with console_for(io, container.bundle.path, "init") as console:
                pid = await portable.restore(
                    container.runtime,
                    container.id,
                    container.bundle.path,
                    self._checkpoint,
                    stdio=io.child_fds,
                    console=console,
                    parent=self._parent,
                    work_path=container.runtime.options.criu_work_path,
                )
        except BaseException:
            if pid:  # it runs, but has no terminal
                await container.runtime.delete(container.id, container.bundle.path, force=True)
                container.reaper.reap(pid)
            raise
        container.init.runs_as(pid)
