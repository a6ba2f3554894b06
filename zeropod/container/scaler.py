"""When a container falls asleep and how it comes back.

The phases and the moves between them are the table of `phase.py`. The native activator fires the
prepared restore itself; what it did arrives here as events. No verb interrupts a dump, for a killed
dump may kill the app: whoever wants something else waits for its end, which the engine's deadline
brings where CRIU hangs. A restore may be killed at any moment.

The container's lock is held from the decision to dump to the armed plan, so that an exec, a kill or
a delete never crosses it; a wake-up does not take it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from zeropod._fastpath import _heap
from zeropod._fastpath._activator import Cause, Event, EventKind, RestorePlan
from zeropod.activator import ports
from zeropod.checkpoint import image
from zeropod.checkpoint.engine import Engine, Target
from zeropod.checkpoint.image import ImageDir, ImageStore
from zeropod.container.disposition import Delivery
from zeropod.container.idle import Asked, IdleTimer, Wait
from zeropod.container.phase import UP, Move, Phase, advance
from zeropod.container.report import History, Outcome, WakeUp
from zeropod.container.reserve import Reserved
from zeropod.container.signals import Signals
from zeropod.container.sleeper import FindPorts, Group, OpenGroup, Sleeper
from zeropod.container.state import Verb
from zeropod.container.tasks import Tasks
from zeropod.container.wake import Wake, unplanned
from zeropod.errors import (
    ActivatorError,
    FailedPrecondition,
    RestoreFailed,
    ZeropodError,
    with_log,
)
from zeropod.oci.reaper import Exit

log = logging.getLogger(__name__)

_LOST_STATUS: Final = 128
_STOPS: Final = frozenset({2, 3, 15})
_STOP_S: Final = 3600.0
_SIGNAL_S: Final = 60.0
_LARGE_BYTES: Final = 64 << 20
_REST_S: Final = 0.1


class Scaler:
    """Of one container.

    Args:
        engine: dumps and restores; ``fresh`` starts anew where that has failed for good.
        open_group: makes the activator's group of ports. Raises ActivatorError.
        open_store: makes the container's image directory. Raises OSError.
        find_ports: the ports of a process tree, once it listens; see `ports.detect`.
        reserve: keeps what a process tree is bound to while it sleeps.
    """

    def __init__(
        self,
        container: Sleeper,
        engine: Engine,
        fresh: Engine,
        *,
        open_group: OpenGroup,
        open_store: Callable[[], ImageStore],
        find_ports: FindPorts = ports.detect,
        reserve: Callable[[int], Reserved] | None = None,
    ) -> None:
        self.engine = engine
        self.phase = Phase.FINDING
        self.history = History()
        given = container.settings
        self._ports = ports.Declared(frozenset(given.ports or ()), frozenset(given.udp_ports))
        self.reason = ports.why_unknown(self._ports)
        self._container = container
        self._fresh = fresh
        self._open_group = open_group
        self._open_store = open_store
        self._find_ports = find_ports
        self._reserve = reserve
        self._reserved: Reserved | None = None
        self._loop = asyncio.get_running_loop()
        self._idle = IdleTimer(
            self._loop,
            container.settings.scaledown_duration_ns,
            self._last_activity_ns,
            self._on_idle,
            self._last_undecided_ns,
            container.settings.min_awake_ns,
        )
        self._group: Group | None = None
        self._store: ImageStore | None = None
        self._target: Target | None = None
        self._images: ImageDir | None = None
        self._plan: RestorePlan | None = None
        self._wake: Wake | None = None
        self._tasks = Tasks()
        self._waiters: list[asyncio.Future[None]] = []
        self._signals = Signals(self, container)
        self._reads = False
        self._woken_by = ""
        self._lost: RestoreFailed | None = None

    # -- verbs of the container ----------------------------------------------------------------

    def started(self) -> None:
        """The container runs: find its ports, then watch them."""
        self._tasks.begin(self._find(), f"find ports {self._container.id}")

    def ended(self) -> None:
        """The container has ended, whatever the reason. Idempotent."""
        self._idle.stop()
        self._release_ports()
        if self._images is not None:
            self._images.release()
        if self.phase is Phase.FINDING:
            self._tasks.cancel()
        self._advance(Move.END)
        if self._group is not None:
            self._group.drop()
            self._group.close()
            self._group = None

    async def until(self, phase: Phase) -> None:
        """Returns in that phase, or when the container has ended."""
        while self.phase not in (phase, Phase.ENDED):
            await self._next()

    async def past(self, *phases: Phase) -> None:
        """Returns when it is in none of these."""
        while self.phase in phases:
            await self._next()

    async def ensure_awake(self, cause: str) -> None:
        """Returns when the processes run; restores them where they do not.

        Raises:
            RestoreFailed: they could not be restored, and the container has ended.
            FailedPrecondition: it had ended before.
        """
        while self.phase not in UP:
            if self.phase is Phase.ENDED:
                if self._lost is not None:
                    raise self._lost
                raise FailedPrecondition(f"container {self._container.id} has ended")
            if self.phase is Phase.ASLEEP and self._group is not None:
                log.info("%s: woken by %s", self._container.id, cause)
                self._woken_by = cause
                self._group.wake()
            await self._next()

    def inhibit(self, reason: str, *, counts: bool = False) -> AbstractContextManager[None]:
        """No scale-down meanwhile. ``counts``: its end is activity."""
        return self._idle.inhibit(reason, counts=counts)

    def input_came(self) -> None:
        """Data, or the end of it, is in the app's stdin: it wakes a sleeper, and is activity.

        The pipe is ours and outlives a sleep: whatever a dump finds in it, the app reads later.
        """
        self._idle.touch("data on stdin")
        if self.phase in (Phase.DUMPING, Phase.ASLEEP) and not self._reads:
            self._reads = True
            self._tasks.begin(self._wake_to_read(), f"wake to read {self._container.id}")

    async def _wake_to_read(self) -> None:
        try:
            with contextlib.suppress(RestoreFailed, FailedPrecondition):
                await self.ensure_awake("data on stdin")
        finally:
            self._reads = False

    def signalled(self, number: int) -> None:
        """A signal is sent to the awake container: what it does about it may take its time.

        An app that was told to stop may save its data for minutes without a packet. Whoever has
        stopped it ends it after a grace period, so the wait is as good as for ever.
        """
        if number > 0:
            self._idle.put_off(_STOP_S if number in _STOPS else _SIGNAL_S, f"signal {number}")

    async def sleep(self, *, force: bool) -> None:
        """Fall asleep now, due or not. Returns when it does.

        Raises:
            FailedPrecondition: why it cannot.
        """
        await self.past(Phase.DUMPING, Phase.WAKING)
        asked = Asked(time.monotonic_ns(), force)
        # A task of its own: a dump is never cut off, whatever becomes of whoever has asked.
        work = self._tasks.begin(self._fall_asleep(asked), f"sleep {self._container.id}")
        if objection := await asyncio.shield(work):
            raise FailedPrecondition(objection)

    @property
    def group(self) -> Group | None:
        """Its ports, to be looked at; None before they are known, and after its end."""
        return self._group

    @property
    def image_bytes(self) -> int:
        """What the present sleep takes on disk."""
        return self._images.size_bytes if self._images is not None else 0

    def why_awake(self) -> Wait:
        """What a sleep waits for; to be asked while it is awake."""
        return self._idle.why()

    @property
    def damped(self) -> str:
        """Why it waits longer than it was told to; or ""."""
        return self._idle.damped

    async def kill_asleep(self, number: int) -> Exit | Delivery:
        """See `Signals.kill`."""
        return await self._signals.kill(number)

    async def close(self) -> None:
        """Delete or the shim's end, at any moment. Leaves no process, directory or descriptor."""
        await self.past(Phase.DUMPING)
        await self.abandon()
        self.ended()
        await self._tasks.end()
        if self._store is not None:
            self._store.close()

    # -- falling asleep ------------------------------------------------------------------------

    async def _find(self) -> None:
        container = self._container
        try:
            found = await self._find_ports(container.init.live_pid, self._ports)
            self._group = self._open_group(found, self._on_event)
        except (ActivatorError, OSError, ValueError) as error:  # ValueError: more than 64 ports
            self.reason = str(error)
            self._advance(Move.REFUSED)
            log.error("%s: is not scaled: %s", container.id, error)
            return
        self.reason = ""
        self._advance(Move.PORTS)
        self._idle.touch("its start")
        self._idle.start()

    def _on_idle(self) -> None:
        self._tasks.begin(self._fall_asleep(), f"scale down {self._container.id}")

    def _last_activity_ns(self) -> int:
        return self._group.last_activity_ns() if self._group is not None else 0

    def _last_undecided_ns(self) -> int:
        return self._group.last_undecided_ns() if self._group is not None else 0

    async def _fall_asleep(self, asked: Asked | None = None) -> str:
        """Where it is idle, or ``asked`` for. Returns why it stays awake; "": it sleeps."""
        container = self._container
        async with container.lock:
            if self.phase is Phase.ASLEEP:
                return ""
            if self.phase is not Phase.AWAKE or self._group is None:
                return self.reason or f"it is {self.phase.value}"
            if objection := self._idle.objection(asked):
                self._idle.start()
                return objection
            self._idle.stop()
            started_ns = time.monotonic_ns()
            container.move(Verb.SCALE_DOWN)
            self._advance(Move.IDLE)
            try:
                if container.settings.pre_dump:  # the app runs and serves meanwhile
                    await self.engine.pre_dump(*self._look())
                    if objection := self._idle.objection(asked):
                        self._stay_awake(Move.BUSY)
                        return objection
                self._group.hold()
                if objection := self._idle.objection(asked):  # a dump would cut somebody off
                    self._stay_awake(Move.BUSY)
                    return objection
                await self._dump()
            except Exception as error:
                if not isinstance(error, (ZeropodError, OSError)):
                    log.exception("%s: the scale-down broke off", container.id)
                self._dump_failed(error)
                return str(error)
            self._idle.forget_backoff()
            self.reason = ""
            container.move(Verb.ASLEEP)
            self._advance(Move.DUMPED)
            self._prepare()
            took_ns = time.monotonic_ns() - started_ns
            size = self._images.size_bytes if self._images else 0
            log.info(
                "%s: asleep after %.0f ms, %.1f MiB", container.id, took_ns / 1e6, size / 2**20
            )
            self.history.checkpoints.done(took_ns)
            container.report(Outcome.SCALED_DOWN, took_ns)
            self._loop.call_later(_REST_S, self._rest)
            return ""

    def _rest(self) -> None:
        """Give back what a sleep does not need, once all that belongs to falling asleep is done."""
        if self.phase is Phase.ASLEEP:
            _heap.release(self._loop)

    def _look(self) -> tuple[Target, ImageDir]:
        """The container as it is now, and the directory of this sleep's images."""
        container = self._container
        pid = container.init.live_pid
        self._signals.look(pid)
        self._target = Target.of(container.id, container.bundle, pid)
        if self._store is None:
            self._store = self._open_store()
        if self._images is None:
            self._images = self._store.new(self._target.owner)
        return self._target, self._images

    async def _dump(self) -> None:
        target, images = self._look()
        if self._reserve is not None:
            self._reserved = self._reserve(target.init_pid)
        await self.engine.checkpoint(target, images)
        if self._reserved is not None and self.engine is not self._fresh:
            self._reserved.hold()
            if self._group is not None:
                self._reserved.lend(self._group.keep)

    def _release_ports(self) -> None:
        if self._reserved is not None:
            if self._group is not None:
                self._group.keep(())
            self._reserved.release()
            self._reserved = None

    def _dump_failed(self, error: Exception) -> None:
        self._release_ports()
        self.reason = str(error)
        self.history.checkpoints.errors += 1
        log.error("%s: stays awake: %s", self._container.id, with_log(error))
        self._idle.back_off()
        self._stay_awake(Move.DUMP_FAILED)
        self._container.report(Outcome.CHECKPOINT_FAILED, log=with_log(error))

    def _stay_awake(self, why: Move) -> None:
        if self._images is not None:
            self._images.discard()
            self._images = None
        if self._group is not None:
            self._group.awake()
        self._advance(why)
        self._idle.start()
        self._container.move(Verb.AWAKE)

    def _prepare(self) -> None:
        """Compute all that a wake-up needs and hand it to the activator."""
        assert self._target and self._images and self._group
        try:
            stdio = self._container.stdio_for_restore()
            self._plan = self.engine.plan(self._target, self._images, stdio)
        except (ZeropodError, OSError) as error:
            self._woken_by = "images that cannot be used"
            self._begin_wake().failed(unplanned(self._container.id, error))
            return
        self._group.arm(self._plan)
        self._images.on_change(self._fit)

    def _fit(self) -> None:
        """What the images speak of is not as it was. Nobody may fire the plan meanwhile."""
        if not (self._target and self._images and self._group and self._plan):
            return
        if self.phase is Phase.ASLEEP and self._group.disarm():
            try:
                self.engine.fit(self._target, self._images)
            except (ZeropodError, OSError) as error:  # whoever wakes it finds the same
                log.error("%s: %s", self._container.id, error)
            finally:
                self._group.arm(self._plan)

    # -- waking --------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if event.kind in (EventKind.FIRED, EventKind.FIRE_FAILED):
            asleep = self.phase is Phase.ASLEEP
            wake = self._begin_wake(event) if asleep else self._wake
            if wake is None:
                log.error("%s: %s while %s", self._container.id, event, self.phase.value)
            elif event.kind is EventKind.FIRED:
                if asleep and event.value != Cause.REQUEST:  # not what is tried again
                    self._idle.fired(by_tls=event.value == Cause.TLS)
                wake.fired(event.pid)
            else:
                wake.fire_failed(event.value)
        elif event.kind is EventKind.CONNECT_TIMEOUT:
            text = "%s: %d connections given up: it did not listen again in time"
            log.warning(text, self._container.id, event.value)
        elif (last := self.history.last_wake) is not None:
            if event.kind is EventKind.READY:
                last.listens_ns = last.listens_ns or event.at_ns
            elif event.kind is EventKind.FIRST_BYTE:
                last.first_byte_ns = event.at_ns

    def _begin_wake(self, event: Event | None = None) -> Wake:
        assert self._target and self._images and self._group and self._store
        self._container.move(Verb.RESTORE)
        self._advance(Move.FIRED)
        asked = event is None or (event.kind is EventKind.FIRED and event.value == Cause.REQUEST)
        by = self._woken_by if asked else "a connection"
        self.history.last_wake = WakeUp(by, event.at_ns if event else time.monotonic_ns())
        self._wake = Wake(
            self._target,
            self._images,
            self._container.stdio_for_restore(),
            engine=self.engine,
            fresh=self._fresh,
            trigger=self._group,
            policy=self._container.settings.restore_failure,
            keep=self._keep,
        )
        # From now on until the new init is known, no zombie may be swept that could be it.
        hold = contextlib.ExitStack()
        hold.enter_context(self._container.reaper.command())
        self._tasks.begin(self._wake_up(self._wake, hold), f"wake {self._container.id}")
        return self._wake

    async def _wake_up(self, wake: Wake, hold: contextlib.ExitStack) -> None:
        container = self._container
        started_ns = time.monotonic_ns()
        with hold:
            try:
                pid = await wake.run()
                if wake.state_lost or self.engine is self._fresh:
                    self._signals.started_afresh()
                container.adopt(pid)
            except Exception as error:
                if not isinstance(error, RestoreFailed):
                    log.exception("%s: the wake-up broke off", container.id)
                    await self._clear_away()
                    error = RestoreFailed(f"restore {container.id}: {error}")
                self._lost = error
                self._advance(Move.LOST)
                container.report(Outcome.RESTORE_FAILED, log=with_log(error))
                container.publish_exit(Exit(_LOST_STATUS, time.time_ns()))
                return
            finally:
                self._wake = None
                self.history.restores.errors += len(wake.errors)
                self._close_plan()
            container.move(Verb.AWAKE)
        if self._group is not None:
            self._group.awake()
        now_ns = time.monotonic_ns()
        took_ns = now_ns - started_ns
        if self.history.last_wake is not None:
            self.history.last_wake.restored_ns = now_ns
        self._discard()
        self._release_ports()
        self._advance(Move.RESTORED)
        self._idle.woken()
        self._idle.start()
        self.reason = self._idle.damped
        if self.reason:
            log.warning("%s: %s", container.id, self.reason)
        log.info("%s: awake as process %d after %.0f ms", container.id, pid, took_ns / 1e6)
        self.history.restores.done(took_ns)
        if wake.state_lost:
            container.report(Outcome.RESTORE_FAILED, log=with_log(wake.errors[0]))
        container.report(Outcome.RUNNING, took_ns)

    async def _clear_away(self) -> None:
        """Nothing of a wake-up that broke off lives on."""
        assert self._target and self._images
        try:
            await self.engine.abort(self._target, self._images, 0)
        except Exception:
            log.exception("%s: something of it may be left", self._container.id)

    async def abandon(self) -> bool:
        """End a sleep or a wake-up, and the container with it. Returns when nothing of it lives.

        False: nothing was given up, for it had come back, or had ended, before.
        """
        if self.phase is Phase.ASLEEP and self._group is not None and not self._group.disarm():
            await self._next()  # it has fired: the event is on the way
        if self._wake is not None:
            self._wake.cancel()
            await self._wake.over()
        if self.phase in UP or self.phase is Phase.ENDED:
            return False
        self._close_plan()
        self._discard()
        self.ended()
        return True

    def _keep(self, images: ImageDir) -> None:
        """Images that could not be restored; an app that starts afresh binds as it likes."""
        self._release_ports()
        if self._store is not None and images.size_bytes:
            kept = self._store.keep_failed(images)
            log.error(
                "%s: images are kept in %s", self._container.id, kept or "no place: too large"
            )

    def _discard(self) -> None:
        """Remove the images; large ones in the background, for everything else waits meanwhile."""
        images, self._images = self._images, None
        if images is None:
            return
        if images.size_bytes < _LARGE_BYTES:
            images.discard()
        else:
            with contextlib.suppress(OSError):  # what cannot be renamed is removed with the store
                work = image.remove(self._container.reaper, [images.condemn()])
                self._tasks.begin(work, f"remove images {self._container.id}")

    def _close_plan(self) -> None:
        if self._plan is not None:
            self._plan.close()
            self._plan = None

    # -- the machine ---------------------------------------------------------------------------

    def _advance(self, what: Move) -> None:
        self.phase = advance(self.phase, what)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _next(self) -> None:
        """Returns after the next move."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter
