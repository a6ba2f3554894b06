"""One container as containerd sees it: created, started, exec'd into, signalled, deleted.

What a sleep means to each verb stands here; how a container falls asleep and wakes is `scaler.py`,
how its end is told `ending.py`.
`lock` is held around every decision that another verb must not cross: start, the start of an exec,
kill, delete, and the scaler's own. An exec first forbids the scale-down (`inhibit`), then wakes the
container, then takes the lock: so a dump never begins between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zeropod.checkpoint import portable
from zeropod.config import (
    CRI_CONTAINER_NAME,
    CRI_CONTAINER_TYPE,
    CRI_SANDBOX_NAME,
    CRI_SANDBOX_NAMESPACE,
    Settings,
)
from zeropod.container import events
from zeropod.container.birth import Birth, Created, Restored
from zeropod.container.disposition import Delivery
from zeropod.container.eligible import why_unscaled
from zeropod.container.ending import Ending
from zeropod.container.events import Stdio
from zeropod.container.execs import Execs
from zeropod.container.limits import Limits
from zeropod.container.logger import Logger
from zeropod.container.oom import Oom
from zeropod.container.phase import Phase
from zeropod.container.process import Init, Process, ProcessInfo, ProcessStatus, Status
from zeropod.container.report import Outcome, Report
from zeropod.container.state import State, Verb, move
from zeropod.container.stats import Meter, Usage
from zeropod.container.stdio import Copy, MakeCopy, ProcessIO
from zeropod.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    RestoreFailed,
    RuntimeFailed,
)
from zeropod.oci.bundle import Bundle
from zeropod.oci.mounts import Mount, mount_all, unmount_all
from zeropod.oci.network import new_namespace
from zeropod.oci.reaper import Exit
from zeropod.oci.runtime import RuntimeOptions

if TYPE_CHECKING:
    from zeropod.container.pod import Pod

log = logging.getLogger(__name__)

_KILL_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What containerd asks for.

    ``checkpoint``: a directory to restore from, which may build upon that in ``parent_checkpoint``.
    """

    id: str
    bundle: str
    stdio: Stdio
    options: RuntimeOptions
    rootfs: tuple[Mount, ...] = ()
    checkpoint: str = ""
    parent_checkpoint: str = ""


class Container:
    """Made by `create`; ended by `delete`."""

    def __init__(self, request: CreateRequest, pod: Pod, settings: Settings) -> None:
        self.id = request.id
        self.pod = pod
        self.settings = settings
        self.bundle = Bundle(request.bundle)
        self.runtime = pod.runtime(request.options)
        self.reaper = pod.reaper
        self.init = Init(request.id, request.stdio, pod.loop)
        self.state_now = State.CREATED
        self.lock = asyncio.Lock()
        self.meter = Meter()
        self.oom = Oom(pod.loop, lambda: self.emit(events.OutOfMemory(self.id)))
        self.scaling_off_reason = why_unscaled(self.bundle, settings)
        self.scaler = None
        if pod.make_scaler is not None and not self.scaling_off_reason:
            self.scaler = pod.make_scaler(self)
        self._rootfs = request.rootfs
        self.execs = Execs(self)
        self.ending = Ending(self)
        self._paused = contextlib.ExitStack()
        self.limits = Limits(self)
        self._network = -1
        self._kills: set[asyncio.Future[None]] = set()
        self._changed_ns = time.time_ns()
        self._took_ns = 0
        self._birth: Birth = Created(self)
        if request.checkpoint:
            checkpoint = Path(request.checkpoint)
            self._birth = Restored(self, checkpoint, request.parent_checkpoint)

    @classmethod
    async def create(cls, request: CreateRequest, pod: Pod) -> Container:
        """Mount the root file system and have the runtime create the container.

        On failure everything that was made is taken away again.

        Raises:
            AnnotationError: a malformed annotation of ours.
            RuntimeFailed: the mount or the runtime said no.
        """
        bundle = Bundle(request.bundle)
        name = bundle.annotations.get(CRI_CONTAINER_NAME, request.id)
        settings = Settings.from_annotations(bundle.annotations, container_name=name)
        container = cls(request, pod, settings)
        try:
            await container._create()
        except BaseException:
            await container._undo_create()
            raise
        return container

    async def _create(self) -> None:
        if self.settings.unsupported:
            names = ", ".join(self.settings.unsupported)
            log.warning("%s: not supported by this version, without effect: %s", self.id, names)
        self.runtime.options.note(self.bundle.path)
        mount_all(self._rootfs, self.bundle.rootfs)
        if self.scaler is not None:
            self.bundle.add_annotations(self.scaler.engine.annotations())
            if self.bundle.namespace_path("network") == "":
                self._hold_network()
        io = self.init.io = self.open_io(self.init, keep=True)
        await io.ready()
        await self._birth.create(io)
        pid = self.init.pid
        self.emit(
            events.Created(self.id, str(self.bundle.path), pid, self.init.stdio, self._rootfs)
        )
        if pid:
            self._meter(pid)
            self.ending.watch(pid)

    def _hold_network(self) -> None:
        """Keep a network namespace for the container, also while nothing lives in it."""
        try:
            self._network = new_namespace()
        except OSError as error:
            text = f"create {self.id}: a network namespace: {error.strerror}"
            raise RuntimeFailed(text) from error
        self.bundle.join_network(f"/proc/{os.getpid()}/fd/{self._network}")

    def _release(self) -> None:
        """Close every descriptor. Idempotent."""
        self.oom.close()
        for process in (*self.execs, self.init):
            process.close_io()
        if self._network >= 0:
            os.close(self._network)
            self._network = -1

    async def _undo_create(self) -> None:
        with contextlib.suppress(RuntimeFailed, DeadlineExceeded):
            await self.runtime.delete(self.id, self.bundle.path, force=True)
        self.init.reap(self.reaper)
        self._release()
        unmount_all(self.bundle.rootfs)

    # -- verbs of containerd -------------------------------------------------------------------

    async def start(self, exec_id: str = "") -> int:
        """Start init or an exec. Returns its pid."""
        if exec_id:
            return await self.execs.start(exec_id)
        async with self.lock:
            after = move(self.state_now, Verb.START, self.id)
            with self.ending.starting():
                assert self.init.io
                born = self.init.pid != 0
                await self._birth.start(self.init.io)
                if not born:
                    self._meter(self.init.pid)
                    self.ending.watch(self.init.pid)
                self.emit(events.Started(self.id, self.init.pid))
                if self.state_now is State.CREATED:
                    self.state_now = after
        if self.state_now is State.RUNNING:
            self.report(Outcome.RUNNING)
            if self.scaler is not None:
                self.scaler.started()
        return self.init.pid

    async def add_exec(self, exec_id: str, process_json: bytes, stdio: Stdio) -> None:
        """Remember an exec; `start` runs it."""
        move(self.state_now, Verb.EXEC, self.id)
        self.execs.add(exec_id, process_json, stdio)

    async def kill(self, signal: int, *, exec_id: str = "", all: bool = False) -> None:
        """Send a signal. Asleep, it may wake the container first, or end it (see the scaler).

        It does not wait for an exec that is being started; a start of the container it does.
        """
        if exec_id:
            self.execs.kill(exec_id, signal)
            return
        move(self.state_now, Verb.KILL, self.id)
        with self._kill_under_way():
            await self._kill(signal, all=all)

    async def _kill(self, signal: int, *, all: bool) -> None:
        while True:
            if self.scaler is not None:
                answer = await self.scaler.kill_asleep(signal)
                if isinstance(answer, Exit):
                    self.publish_exit(answer)
                if answer is not Delivery.DUE:
                    return
            if await self._signal(signal, all=all):
                return
            if self.scaler is None or self.scaler.phase is Phase.ENDED:
                raise NotFound(f"container {self.id}: process already finished")
            # It has fallen asleep in between.

    @contextlib.contextmanager
    def _kill_under_way(self) -> Iterator[None]:
        over = asyncio.get_running_loop().create_future()
        self._kills.add(over)
        try:
            yield
        finally:
            self._kills.remove(over)
            over.set_result(None)

    async def _signal(self, number: int, *, all: bool) -> bool:
        """Have the runtime send a signal. False: nothing runs that could get it."""
        async with contextlib.AsyncExitStack() as hold:
            if self.scaler is not None:  # no dump begins from here on
                hold.enter_context(self.scaler.inhibit(f"signal {number}"))
                self.scaler.signalled(number)
            if self.state_now is State.CREATED:
                await hold.enter_async_context(self.lock)
            move(self.state_now, Verb.KILL, self.id)
            if self.state_now not in (State.CREATED, State.RUNNING, State.PAUSED):
                return False
            await self.runtime.kill(self.id, self.bundle.path, number, all=all)
            return True

    async def pause(self) -> None:
        """Freeze the container; one that sleeps is woken first. It does not sleep meanwhile."""
        with contextlib.ExitStack() as hold:
            if self.scaler is not None:
                hold.enter_context(self.scaler.inhibit("paused", counts=True))
                await self.scaler.ensure_awake("pause")
            async with self.lock:
                after = move(self.state_now, Verb.PAUSE, self.id)
                try:
                    await self.runtime.pause(self.id, self.bundle.path)
                except BaseException:
                    await self.thaw()  # it may be frozen for all that
                    raise
                if self.state_now is not State.RUNNING:
                    await self.thaw()
                    move(self.state_now, Verb.PAUSE, self.id)  # says that it has ended
                self.state_now = after
                self._paused.push(hold.pop_all())
                self.emit(events.Paused(self.id))

    async def resume(self) -> None:
        async with self.lock:
            after = move(self.state_now, Verb.RESUME, self.id)
            try:
                await self.runtime.resume(self.id, self.bundle.path)
            except (RuntimeFailed, DeadlineExceeded):
                if await self._is_frozen():
                    raise
            if self.state_now is State.PAUSED:
                self.state_now = after
                self.unpaused()
                self.emit(events.Resumed(self.id))

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Set limits (OCI LinuxResources), also those that a restore will find.

        One that is on its way back gets them when it is there: they hold when this returns.
        """
        if self.scaler is not None and self.state_now is State.WAKING:
            with contextlib.suppress(RestoreFailed, FailedPrecondition):
                await self.scaler.ensure_awake("update")
        async with self.lock:
            move(self.state_now, Verb.UPDATE, self.id)
            await self.limits.update(resources)

    async def checkpoint(self, path: str, flags: Sequence[str], work_path: str = "") -> None:
        """Write a checkpoint for somebody else into ``path``, by the runtime's own verb.

        One that sleeps is woken first: what it sleeps from is for one use. ``flags`` are the
        runtime's; without ``--leave-running`` the container ends by it, which is told as its exit.
        """
        with contextlib.ExitStack() as hold:
            if self.scaler is not None:
                hold.enter_context(self.scaler.inhibit("checkpoint"))
                await self.scaler.ensure_awake("checkpoint")
            async with self.lock:
                move(self.state_now, Verb.CHECKPOINT, self.id)
                await portable.export(
                    self.runtime, self.id, self.bundle.path, Path(path), flags, work_path
                )

    async def delete(self, exec_id: str = "") -> events.Deleted:
        """Take away what has ended: an exec, or the container with all it has."""
        if exec_id:
            return await self.execs.delete(exec_id)
        async with self.lock:
            move(self.state_now, Verb.DELETE, self.id)
            if self.state_now is State.CREATED:
                await self.ending.end_created()
        exit = await self.init.wait()
        await self.init.drain()
        async with self.lock:
            after = move(self.state_now, Verb.DELETE, self.id)
            if self.scaler is not None:
                await self.scaler.close()
            await self.runtime.delete(self.id, self.bundle.path)
            self._release()
            unmount_all(self.bundle.rootfs)
            self.init.reap(self.reaper)
            self.state_now = after
            gone = events.Deleted(self.id, self.id, self.init.pid, exit)
            self.emit(gone)
        if self._kills:  # with the answer containerd hangs up: theirs must be there before it
            await asyncio.wait(self._kills, timeout=_KILL_TIMEOUT_S)
        return gone

    def state(self, exec_id: str = "") -> ProcessStatus:
        process = self._process(exec_id)
        if process.exit is not None:
            status = Status.STOPPED
        elif self.state_now is State.PAUSED:
            status = Status.PAUSED
        elif exec_id:
            status = Status.RUNNING if process.pid else Status.CREATED
        else:
            status = Status.CREATED if self.state_now is State.CREATED else Status.RUNNING
        return ProcessStatus(
            id=self.id,
            exec_id=exec_id,
            bundle=str(self.bundle.path),
            pid=process.pid,
            status=status,
            stdio=process.stdio,
            exit=process.exit,
        )

    async def wait(self, exec_id: str = "") -> Exit:
        """Returns at the real end only, never at a scale-down."""
        return await self._process(exec_id).wait()

    async def pids(self) -> list[ProcessInfo]:
        """All processes of the container; asleep, the first pid alone."""
        by_pid = {exec.live_pid: exec.id for exec in self.execs if exec.live_pid}
        found = self.meter.cgroups.processes() if self.meter.cgroups else set()
        if self.state_now not in (State.RUNNING, State.PAUSED) or not found:
            return [ProcessInfo(self.init.pid)] if self.init.pid else []
        return [ProcessInfo(pid, by_pid.get(pid, "")) for pid in sorted(found)]

    async def stats(self) -> Usage:
        if self.state_now is State.DELETED:
            raise NotFound(f"container {self.id} is deleted")
        return self.meter.read()

    async def close_io(self, exec_id: str = "") -> None:
        """End of file on stdin."""
        process = self._process(exec_id)
        if process.io is not None:
            process.io.close_stdin()

    async def resize(self, width: int, height: int, exec_id: str = "") -> None:
        """The terminal's size, in characters; nothing happens without a terminal."""
        process = self._process(exec_id)
        if process.io is not None:
            process.io.resize(width, height)

    async def close(self) -> None:
        """The shim ends: let go of descriptors and tasks, touch nothing else."""
        if self.scaler is not None:
            await self.scaler.close()
        self._release()

    # -- what the scaler needs -----------------------------------------------------------------

    @property
    def netns(self) -> str:
        """The path of the container's network namespace, which it joins by it."""
        return self.bundle.namespace_path("network") or ""

    def open_io(self, process: Process, *, keep: bool, copy: MakeCopy = Copy) -> ProcessIO:
        """The stdio of init (which keeps it over sleeps) or of an exec. Raises as `ProcessIO`."""
        owner = self.runtime.options.io_owner
        if owner == (0, 0):
            owner = self.bundle.mapped_user
        named = {"id": process.id, "namespace": self.pod.namespace}
        open_logger = partial(Logger, self.reaper, **named, owner=owner)
        return ProcessIO(
            *(self.pod.loop, process.stdio),
            keep=keep,
            owner=owner,
            open_logger=open_logger,
            on_input=self.scaler.input_came if self.scaler is not None and keep else None,
            copy=copy,
        )

    def stdio_for_restore(self) -> tuple[int, int, int]:
        return self.init.io.child_fds if self.init.io is not None else (-1, -1, -1)

    def move(self, verb: Verb) -> None:
        """Change the state. Raises IllegalTransition."""
        if verb is Verb.SCALE_DOWN:
            self.meter.read()  # the last look before the cgroup goes
        self.state_now = move(self.state_now, verb, self.id)
        if verb is Verb.ASLEEP:
            self.ending.forget()
            self.meter.end()
            self.oom.close()
            self.init.live_pid = 0
            self.init.reap_restored(self.reaper)
        elif verb is Verb.AWAKE:
            self.ending.release()
            self.limits.awake()

    @property
    def is_sandbox(self) -> bool:
        return self.bundle.annotations.get(CRI_CONTAINER_TYPE) == "sandbox"

    def report(self, outcome: Outcome, duration_ns: int = 0, log: str = "") -> None:
        """Tell subscribers of a change; of the sandbox nobody wants to know."""
        if self.is_sandbox:
            return
        before = self._changed_ns, self._took_ns
        self._changed_ns, self._took_ns = time.time_ns(), duration_ns
        self.pod.feed.publish(self._report(outcome, log))
        if outcome is Outcome.CHECKPOINT_FAILED:  # it runs on as before
            self._changed_ns, self._took_ns = before

    def status(self) -> Report:
        """What it is now, and since when; ``reason`` says why it does not sleep."""
        outcome = Outcome.RUNNING
        if self.state_now in (State.STOPPED, State.DELETED):
            outcome = Outcome.STOPPING
        elif self.state_now in (State.SCALED_DOWN, State.WAKING):
            outcome = Outcome.SCALED_DOWN
        return self._report(outcome)

    def _report(self, outcome: Outcome, log: str = "") -> Report:
        annotations = self.bundle.annotations
        return Report(
            id=self.id,
            name=annotations.get(CRI_CONTAINER_NAME, self.id),
            pod_name=annotations.get(CRI_SANDBOX_NAME, ""),
            pod_namespace=annotations.get(CRI_SANDBOX_NAMESPACE, ""),
            outcome=outcome,
            at_ns=self._changed_ns,
            duration_ns=self._took_ns,
            log=log,
            reason=self.scaler.reason if self.scaler else self.scaling_off_reason,
        )

    def adopt(self, pid: int) -> None:
        """``pid`` is the restored (or freshly started) init. Its exit counts from now on."""
        self._meter(pid)
        self.init.runs_as(pid)
        self.ending.watch(pid)

    def publish_exit(self, exit: Exit) -> None:
        """The container has ended. Does nothing when that was known."""
        self.ending.publish(exit)

    # -- processes -----------------------------------------------------------------------------

    def _meter(self, pid: int) -> None:
        self.meter.begin(pid)
        self.oom.begin(self.meter.cgroups)

    def unpaused(self) -> None:
        """It may sleep again, as far as a pause is concerned."""
        self._paused.close()

    async def thaw(self) -> None:
        """Leave nothing frozen of what has ended, as the stock shim does."""
        with contextlib.suppress(RuntimeFailed, DeadlineExceeded):
            await self.runtime.resume(self.id, self.bundle.path)

    async def _is_frozen(self) -> bool:
        """Whether the runtime says so, or cannot tell."""
        try:
            state = await self.runtime.state(self.id, self.bundle.path)
        except (RuntimeFailed, DeadlineExceeded, NotFound):
            return True
        return state.get("status") == "paused"

    def _process(self, exec_id: str) -> Process:
        return self.execs.get(exec_id) if exec_id else self.init

    def emit(self, event: events.Event) -> None:
        self.pod.emit(event)
