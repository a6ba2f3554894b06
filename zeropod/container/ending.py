"""The end of a container's init: told exactly once, after those of all execs.

While a dump is under way an exit is held back until the scaler has said whether the dump was its
cause; while the container is started, until that has been told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zeropod.container import events
from zeropod.container.process import Process
from zeropod.container.report import Outcome
from zeropod.container.state import State, Verb, move
from zeropod.errors import DeadlineExceeded, NotFound, RuntimeFailed
from zeropod.oci.reaper import Exit

if TYPE_CHECKING:
    from zeropod.container.container import Container

log = logging.getLogger(__name__)


class Ending:
    """Of one container."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._starting = False
        self._held: Exit | None = None

    def watch(self, pid: int) -> None:
        """``pid`` is the live init. Its exit counts from now on."""
        watch = self._container.reaper.watch(pid)
        watch.add_done_callback(lambda done: self._init_ended(pid, done))

    def publish(self, exit: Exit) -> None:
        """The container has ended. Does nothing when that was known."""
        container = self._container
        if container.state_now in (State.STOPPED, State.DELETED):  # also: is about to be told
            return
        paused = container.state_now is State.PAUSED
        lived = container.state_now not in (State.SCALED_DOWN, State.WAKING)
        container.state_now = move(container.state_now, Verb.EXIT, container.id)
        container.init.live_pid = 0
        if container.scaler is not None:
            container.scaler.ended()
        container.unpaused()
        container.report(Outcome.STOPPING)
        leftovers = lived and container.bundle.namespace_path("pid") != ""
        end = self._end(exit, leftovers=leftovers, paused=paused)
        container.pod.tasks.begin(end, f"exit {container.id}")

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """An exit meanwhile is told afterwards."""
        self._starting = True
        try:
            yield
        finally:
            self._starting = False
            self.release()

    def release(self) -> None:
        """Tell of an exit that was held back."""
        if self._held is not None:
            exit, self._held = self._held, None
            self.publish(exit)

    def forget(self) -> None:
        """The exit that was held back was the dump's work: it is none."""
        self._held = None

    async def end_created(self) -> None:
        """Kill the init that waits to be started. Its exit is on the way then."""
        container = self._container
        pid = container.init.live_pid
        await container.runtime.delete(container.id, container.bundle.path, force=True)
        if not container.init.pid:  # it was to be restored: nothing has lived that could be told of
            container.state_now = move(container.state_now, Verb.EXIT, container.id)
            container.init.set_exit(Exit(0, time.time_ns()))
        elif pid and pid == container.init.live_pid:
            with contextlib.suppress(ProcessLookupError):  # the runtime may not know it any more
                os.kill(pid, signal.SIGKILL)

    async def finish(self, process: Process, exit: Exit) -> None:
        """All output first, then the news, as containerd reads them."""
        if process.io is not None:
            await process.io.finish()
        if process.set_exit(exit):
            id = self._container.id
            self._container.emit(events.Exited(id, process.id, process.pid, exit))

    def _init_ended(self, pid: int, done: asyncio.Future[Exit]) -> None:
        container = self._container
        if done.cancelled() or pid != container.init.live_pid:
            return
        if self._starting or container.state_now is State.SCALING_DOWN:
            self._held = done.result()
            return
        self.publish(done.result())

    async def _end(self, exit: Exit, *, leftovers: bool, paused: bool) -> None:
        """Tell of init's exit, whatever else fails."""
        container = self._container
        try:
            await self._before(leftovers=leftovers, paused=paused)
        except Exception:
            log.exception("%s: at its end", container.id)
        await self.finish(container.init, exit)

    async def _before(self, *, leftovers: bool, paused: bool) -> None:
        """What comes before the exit of init is told: everybody else has ended, and that is told.

        With a pid namespace of its own init has taken everybody along; without one the container's
        other processes live on (``leftovers``) and are killed, as the stock shim does.
        """
        container = self._container
        if paused:
            await container.thaw()
        if leftovers:
            async with container.lock:  # an exec that is being started is one of them
                with contextlib.suppress(NotFound):
                    await self._kill_leftovers()
        for exec in container.execs:
            await exec.told()
        container.oom.end()

    async def _kill_leftovers(self) -> None:
        container = self._container
        try:
            await container.runtime.kill(
                container.id, container.bundle.path, signal.SIGKILL, all=True
            )
        except (RuntimeFailed, DeadlineExceeded) as error:
            log.error("%s: what init has left was not killed: %s", container.id, error)
