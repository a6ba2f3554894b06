"""A container that does as it is told: every verb notes its arguments, and may be made to fail."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

from zeropod.container.container import Container, CreateRequest
from zeropod.container.events import Deleted, Stdio
from zeropod.container.pod import Pod
from zeropod.container.process import ProcessInfo, ProcessStatus, Status
from zeropod.container.stats import Usage
from zeropod.errors import NotFound
from zeropod.oci.bundle import Bundle
from zeropod.oci.reaper import Exit

EXIT = Exit(7, 1_700_000_000_123_456_789)
PID = 4242


@dataclass
class FakeContainer:
    """``fails`` maps a verb to what it raises; ``calls`` holds (verb, arguments) in order.
    ``gate`` holds up its deletion."""

    id: str
    request: CreateRequest
    fails: dict[str, BaseException] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    usage: Usage = field(default_factory=Usage)
    gate: asyncio.Event | None = None

    @property
    def bundle(self) -> Bundle:
        return Bundle(self.request.bundle)

    def _note(self, verb: str, *arguments: Any) -> None:
        self.calls.append((verb, *arguments))
        if verb in self.fails:
            raise self.fails[verb]

    async def start(self, exec_id: str = "") -> int:
        self._note("start", exec_id)
        return PID + bool(exec_id)

    async def add_exec(self, exec_id: str, process_json: bytes, stdio: Stdio) -> None:
        self._note("add_exec", exec_id, process_json, stdio)

    async def kill(self, signal: int, *, exec_id: str = "", all: bool = False) -> None:
        self._note("kill", signal, exec_id, all)

    async def delete(self, exec_id: str = "") -> Deleted:
        self._note("delete", exec_id)
        if self.gate is not None:
            await self.gate.wait()
        return Deleted(self.id, exec_id or self.id, PID, EXIT)

    def state(self, exec_id: str = "") -> ProcessStatus:
        self._note("state", exec_id)
        ended = self.exited.is_set()
        return ProcessStatus(
            id=self.id,
            exec_id=exec_id,
            bundle=self.request.bundle,
            pid=PID,
            status=Status.STOPPED if ended else Status.RUNNING,
            stdio=self.request.stdio,
            exit=EXIT if ended else None,
        )

    async def wait(self, exec_id: str = "") -> Exit:
        self._note("wait", exec_id)
        await self.exited.wait()
        return EXIT

    async def pids(self) -> list[ProcessInfo]:
        self._note("pids")
        return [ProcessInfo(PID), ProcessInfo(PID + 1, "e1")]

    async def stats(self) -> Usage:
        self._note("stats")
        return self.usage

    async def close_io(self, exec_id: str = "") -> None:
        self._note("close_io", exec_id)

    async def pause(self) -> None:
        self._note("pause")

    async def resume(self) -> None:
        self._note("resume")

    async def update(self, resources: dict[str, Any]) -> None:
        self._note("update", resources)

    async def checkpoint(self, path: str, flags: list[str], work_path: str = "") -> None:
        self._note("checkpoint", path, flags, work_path)

    async def resize(self, width: int, height: int, exec_id: str = "") -> None:
        self._note("resize", width, height, exec_id)


class Maker:
    """Makes fake containers in place of `Container.create`."""

    def __init__(self) -> None:
        self.made: dict[str, FakeContainer] = {}
        self.fails: BaseException | None = None
        self.gate: asyncio.Event | None = None

    async def __call__(self, request: CreateRequest, pod: Pod) -> Container:
        if self.gate is not None:
            await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.made[request.id] = FakeContainer(request.id, request)
        return cast("Container", self.made[request.id])

    def __getitem__(self, id: str) -> FakeContainer:
        try:
            return self.made[id]
        except KeyError:
            raise NotFound(id) from None
