"""Execs as containerd does them, in a container that sleeps and wakes as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.unit.container.conftest import Box
from zeropod.container.container import Container
from zeropod.container.events import Stdio
from zeropod.container.phase import Phase
from zeropod.container.state import State
from zeropod.oci.reaper import Exit

LIMIT_S = 20


class SleeperScaler:
    """Sleeps and wakes as it is told, and notes who has woken it and what counts."""

    def __init__(self, container: Container) -> None:
        self.engine = SimpleNamespace(annotations=dict)
        self.container = container
        self.phase = Phase.AWAKE
        self.reason = ""
        self.woken: list[str] = []
        self.inhibited: list[str] = []
        self.counted: list[str] = []

    def sleep(self, phase: Phase = Phase.ASLEEP) -> None:
        self.phase = phase
        states = {Phase.ASLEEP: State.SCALED_DOWN, Phase.DUMPING: State.SCALING_DOWN}
        self.container.state_now = states.get(phase, State.WAKING)

    @contextlib.contextmanager
    def inhibit(self, reason: str, *, counts: bool = False) -> Iterator[None]:
        self.inhibited.append(reason)
        yield
        self.inhibited.remove(reason)
        if counts:
            self.counted.append(reason)

    async def ensure_awake(self, cause: str) -> None:
        if self.phase is not Phase.AWAKE:
            self.woken.append(cause)
            self.phase, self.container.state_now = Phase.AWAKE, State.RUNNING

    def input_came(self) -> None: ...

    def started(self) -> None: ...

    def ended(self) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Said:
    """What came of an exec: its exit, its outputs, and what was told of it."""

    exit: Exit
    stdout: bytes
    stderr: bytes
    pid: int
    told: list[type]


@dataclass
class Client:
    """Executes as containerd does: FIFOs of its own for each exec, read to their end."""

    box: Box
    folder: Path
    number: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def scaler(self) -> SleeperScaler:
        scaler: Any = self.box.container.scaler
        assert isinstance(scaler, SleeperScaler)
        return scaler

    @property
    def runs(self) -> int:
        """How many execs the runtime was asked for."""
        return sum(call.startswith("exec") for call in self.box.calls())

    def fifos(self, *names: str) -> list[str]:
        self.number += 1
        paths = [self.folder / f"{self.number}-{name}" for name in names]
        for path in paths:
            os.mkfifo(path)
        return [str(path) for path in paths]

    async def exec(self, *args: str, **process: Any) -> Said:
        """An exec with stdout and stderr; ``process`` has more of its OCI process."""
        stdout, stderr = self.fifos("out", "err")
        return await self.run(Stdio("", stdout, stderr), args=args, **process)

    async def run(self, stdio: Stdio, **process: Any) -> Said:
        id = f"e{self.number}"
        container = self.box.container
        async with self.reading(stdio.stdout, stdio.stderr) as outputs, asyncio.timeout(LIMIT_S):
            await container.add_exec(id, json.dumps(process).encode(), stdio)
            waiting = asyncio.create_task(container.wait(id))
            pid = await container.start(id)
            exit = await waiting
            await container.delete(id)
            said = [await output for output in outputs]
        told = [
            type(event)
            for event in self.box.events
            if id in (getattr(event, "exec_id", ""), getattr(event, "process_id", ""))
        ]
        return Said(exit, said[0], said[1], pid, told)

    @contextlib.asynccontextmanager
    async def reading(self, *paths: str) -> AsyncIterator[list[asyncio.Task[bytes]]]:
        """Read FIFOs to their end, once the block has given them a writer; "" is no FIFO."""
        fds = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) if path else -1 for path in paths]
        outputs = [asyncio.create_task(self._read(fd)) for fd in fds]
        try:
            yield outputs
        finally:
            for output in outputs:
                output.cancel()
            await asyncio.wait(outputs)
            for fd in filter(lambda fd: fd >= 0, fds):
                os.close(fd)

    async def _read(self, fd: int) -> bytes:
        """Returns at the end of file; one that no writer has had yet is none."""
        found = b""
        while fd >= 0:
            ready = self.loop.create_future()
            self.loop.add_reader(fd, ready.set_result, None)
            try:
                await ready
            finally:
                self.loop.remove_reader(fd)
            piece = os.read(fd, 65536)
            if not piece:
                break
            found += piece
        return found
