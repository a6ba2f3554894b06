"""The other processes that containerd runs in a container.

An exec's life: added (a spec, nothing runs) → starting → runs → ended, its exit told → deleted. One
that fails to start has ended, with status 255 and no event. While one runs its container does not
fall asleep; it is woken first, and the container's lock keeps the dump and the start of an exec
apart. With `exec-probes: cached` one may instead be answered from memory (`remembered.py`): nothing
runs, and it ends with what the same command said before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeropod.config import ExecProbes
from zeropod.container import events
from zeropod.container.events import Stdio
from zeropod.container.phase import Phase
from zeropod.container.process import Exec
from zeropod.container.remembered import Readers, Remembered
from zeropod.container.state import Verb, move
from zeropod.container.stdio import Copy, console_for
from zeropod.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from zeropod.oci.reaper import Exit, children

if TYPE_CHECKING:
    from zeropod.container.container import Container

_NEVER_RAN: Final = 255
_DEATH_S: Final = 5.0
_DOWN: Final = (Phase.DUMPING, Phase.ASLEEP)
_READER_S: Final = tuple(0.001 * 2 ** min(number, 6) for number in range(21))
"""Pauses between two looks for who reads an answer: nothing tells that a FIFO has a reader."""


class Execs:
    """Those of one container, by their ids."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._execs: dict[str, Exec] = {}
        self._remembered: Remembered | None = None
        if container.settings.exec_probes is ExecProbes.CACHED and container.scaler is not None:
            self._remembered = Remembered()

    def __iter__(self) -> Iterator[Exec]:
        """Those there are now; they may change meanwhile."""
        return iter(tuple(self._execs.values()))

    def get(self, exec_id: str) -> Exec:
        """Raises NotFound."""
        try:
            return self._execs[exec_id]
        except KeyError:
            raise NotFound(
                f"exec {exec_id} in container {self._container.id} does not exist"
            ) from None

    def add(self, exec_id: str, process_json: bytes, stdio: Stdio) -> None:
        """Remember one.

        Raises:
            AlreadyExists: the id is taken.
            InvalidArgument: ``process_json`` is no OCI process.
        """
        container = self._container
        if exec_id in self._execs:
            raise AlreadyExists(f"exec {exec_id} in container {container.id} already exists")
        spec = _spec(exec_id, process_json, stdio)
        self._execs[exec_id] = Exec(exec_id, stdio, container.pod.loop, spec)
        container.emit(events.ExecAdded(container.id, exec_id))

    async def start(self, exec_id: str) -> int:
        """Wake the container where it sleeps, and run the exec. Returns its pid.

        One that is answered from memory has the pid of the container's first init, which is nobody
        else's.
        """
        container, exec = self._container, self.get(exec_id)
        if exec.over is not None:
            text = f"exec {exec.id} in container {container.id} was started before"
            raise FailedPrecondition(text)
        exec.over = container.pod.loop.create_future()
        hold, readers = contextlib.ExitStack(), Readers(exec.stdio)
        try:
            if container.scaler is not None:
                if await self._answer(exec, readers):
                    return exec.pid
                cause = f"exec {exec.id}"
                by_user = exec.stdio.terminal or exec.stdio.stdin != ""
                hold.enter_context(container.scaler.inhibit(cause, counts=by_user))
                await container.scaler.ensure_awake(cause)
            async with container.lock:
                move(container.state_now, Verb.EXEC, container.id)
                pid = await self._run(exec)
                exec.runs_as(pid)
                container.emit(events.ExecStarted(container.id, exec.id, pid))
        except BaseException:
            exec.over.set_result(None)
            hold.close()
            exec.close_io()
            exec.set_exit(Exit(_NEVER_RAN, time.time_ns()))  # whoever waits for it is told
            raise
        finally:
            readers.close()
        exec.release = hold.close
        container.reaper.watch(pid).add_done_callback(lambda done: self._ended(exec, done))
        return pid

    async def _answer(self, exec: Exec, readers: Readers) -> bool:
        """Asleep, or falling asleep: say what the same command said last. False: it must run."""
        container, scaler = self._container, self._container.scaler
        copy = self._remembered.answer(exec) if self._remembered is not None else None
        for pause_s in _READER_S:
            if copy is None or scaler is None or scaler.phase not in _DOWN:
                return False
            if readers.there():
                exec.io = container.open_io(exec, keep=False, copy=copy)
                break
            await asyncio.sleep(pause_s)
        else:
            return False
        exec.io.started()
        exec.pid = container.init.pid
        container.emit(events.ExecStarted(container.id, exec.id, exec.pid))
        self._own_end(exec, Exit(0, time.time_ns()))
        return True

    def kill(self, exec_id: str, number: int) -> None:
        """Raises FailedPrecondition before its start, NotFound after its end."""
        exec = self.get(exec_id)
        if not exec.pid:
            text = f"exec {exec.id} in container {self._container.id}: process not created"
            raise FailedPrecondition(text)
        gone = f"exec {exec.id} in container {self._container.id}: process already finished"
        if not exec.live_pid:
            raise NotFound(gone)
        try:
            os.kill(exec.live_pid, number)
        except ProcessLookupError as error:
            raise NotFound(gone) from error

    async def delete(self, exec_id: str) -> events.Deleted:
        """Forget one that has ended, or never ran."""
        container, exec = self._container, self.get(exec_id)
        if exec.over is not None and exec.exit is None:
            text = f"cannot delete a running exec {exec.id} in container {container.id}"
            raise FailedPrecondition(text)
        await exec.drain()
        self.get(exec_id)  # another delete may have been first
        del self._execs[exec.id]
        exit = exec.exit or Exit(0, time.time_ns())
        exec.set_exit(exit)
        gone = events.Deleted(container.id, exec.id, exec.pid, exit)
        container.emit(gone)
        return gone

    async def _run(self, exec: Exec) -> int:
        container = self._container
        exec.recording = self._remembered.begin(exec) if self._remembered is not None else None
        copy = exec.recording.copy if exec.recording is not None else Copy
        io = exec.io = container.open_io(exec, keep=False, copy=copy)
        pid = 0
        spec, pid_file = (container.bundle.path / f"{exec.id}.{kind}" for kind in ("json", "pid"))
        try:
            await io.ready()
            spec.write_bytes(exec.spec)
            with console_for(io, container.bundle.path, exec.id) as console:
                pid = await container.runtime.exec(
                    container.id,
                    container.bundle.path,
                    spec,
                    pid_file=pid_file,
                    stdio=io.child_fds,
                    console=console,
                )
        except BaseException:
            await self._end(pid or _pid_in(pid_file))  # it may run for all that
            raise
        finally:
            spec.unlink(missing_ok=True)
            pid_file.unlink(missing_ok=True)
        io.started()
        return pid

    async def _end(self, pid: int) -> None:
        """Kill and reap what an exec that has failed left running. 0: nothing."""
        if pid not in children():
            return
        reaper = self._container.reaper
        with contextlib.suppress(ProcessLookupError):
            end = reaper.watch(pid)
            os.kill(pid, signal.SIGKILL)
            await asyncio.wait([end], timeout=_DEATH_S)  # in an uninterruptible sleep: later
        reaper.reap(pid)

    def _ended(self, exec: Exec, done: asyncio.Future[Exit]) -> None:
        if done.cancelled():
            return
        container, exit = self._container, done.result()
        container.reaper.reap(exec.pid)
        exec.live_pid = 0  # its number may be another's from now on
        if exec.release is not None:
            exec.release()
        self._own_end(exec, exit)

    def _own_end(self, exec: Exec, exit: Exit) -> None:
        self._container.pod.tasks.begin(self._tell(exec, exit), f"exit {exec.id}")

    async def _tell(self, exec: Exec, exit: Exit) -> None:
        assert exec.over is not None
        try:
            await self._container.ending.finish(exec, exit)
            if exec.recording is not None and self._remembered is not None:
                self._remembered.end(exec.recording, exit)
        finally:
            exec.over.set_result(None)


def _spec(exec_id: str, process_json: bytes, stdio: Stdio) -> bytes:
    """The OCI process with containerd's word on the terminal, which counts."""
    try:
        process = json.loads(process_json)
        process["terminal"] = stdio.terminal
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"exec {exec_id}: its spec is no OCI process: {error}") from error
    return json.dumps(process).encode()


def _pid_in(file: Path) -> int:
    """What the runtime wrote there; 0 where it did not get that far."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
