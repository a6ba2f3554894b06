"""One wake-up: from the firing of a prepared restore to a running init, or to the end.

attempt                fails, proved that nothing ran   fails otherwise
1st restore            2nd restore                      policy
2nd restore            policy                           policy
policy restart: fresh  fail                             fail
policy fail            -                                the container ends, code 128

Every attempt is spawned by native code, in the moment its plan is armed if somebody waits for it
and else by `wake()`; here it is followed from its FIRED event on. An attempt that fails has been
cleared away by its engine before the next one is planned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Protocol

from zeropod._fastpath._activator import RestorePlan
from zeropod.checkpoint.engine import Engine, Stdio, Target
from zeropod.checkpoint.image import ImageDir
from zeropod.config import RestoreFailure
from zeropod.errors import ImageCorrupt, RestoreFailed, ZeropodError, with_log

log = logging.getLogger(__name__)


class Trigger(Protocol):
    """What a wake-up needs of `activator.PortGroup`."""

    def hold(self) -> None: ...
    def arm(self, plan: RestorePlan) -> bool: ...
    def wake(self) -> bool: ...


class Wake:
    """``keep``: what becomes of images that could not be restored."""

    def __init__(
        self,
        target: Target,
        images: ImageDir,
        stdio: Stdio,
        *,
        engine: Engine,
        fresh: Engine,
        trigger: Trigger,
        policy: RestoreFailure,
        keep: Callable[[ImageDir], None],
    ) -> None:
        self._target = target
        self._images = images
        self._stdio = stdio
        self._engine = engine
        self._fresh = fresh
        self._trigger = trigger
        self._policy = policy
        self._keep = keep
        self._fired: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._plan: RestorePlan | None = None
        self._runner: asyncio.Task[object] | None = None
        self._cancelled = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.errors: list[RestoreFailed] = []
        self.state_lost = False

    def fired(self, pid: int) -> None:
        """The plan runs as process ``pid``."""
        if not self._fired.done():
            self._fired.set_result(pid)

    def fire_failed(self, number: int) -> None:
        """The plan could not even be spawned; ``number`` is the errno."""
        text = f"restore {self._target.id}: cannot start the runtime: {os.strerror(number)}"
        self.failed(RestoreFailed(text, retryable=True))

    def failed(self, error: RestoreFailed) -> None:
        """There is nothing that could be fired."""
        if not self._fired.done():
            self._fired.set_exception(error)

    def cancel(self) -> None:
        """End it at whatever point it is; `over` returns when nothing of it lives."""
        if self._cancelled:
            return
        self._cancelled = True
        if self._runner is not None:
            self._runner.cancel()

    async def over(self) -> None:
        await asyncio.shield(self._over)

    async def run(self) -> int:
        """Returns the pid of the new init. Cancelled, it leaves no process behind.

        Raises:
            RestoreFailed: the container has ended; the policy is ``fail``, or not even a fresh
                start succeeded.
        """
        self._runner = asyncio.current_task()
        try:
            for _ in range(2):
                if (pid := await self._attempt(self._engine)) is not None:
                    return pid
                if not self.errors[-1].retryable or len(self.errors) == 2:
                    break
                self._fire(self._engine)
            last = self.errors[-1]
            self._keep(self._images)
            if self._policy is RestoreFailure.FAIL or self._engine is self._fresh:
                raise last
            self.state_lost = True
            log.error("%s: started afresh, its state is lost: %s", self._target.id, last)
            self._fire(self._fresh)
            if (pid := await self._attempt(self._fresh)) is not None:
                return pid
            raise self.errors[-1]
        finally:
            self.close()
            self._over.set_result(None)

    def close(self) -> None:
        """Let go of the plan that this wake-up made last. Idempotent."""
        if self._plan is not None:
            self._plan.close()
            self._plan = None

    async def _attempt(self, engine: Engine) -> int | None:
        """The pid of the new init; None after a failure, which is then the last of ``errors``."""
        try:
            try:
                if self._cancelled:  # before this began to run
                    raise asyncio.CancelledError
                pid = await asyncio.shield(self._fired)
            except asyncio.CancelledError:
                # Whoever armed this plan has fired it: its pid is on the way.
                with contextlib.suppress(RestoreFailed):
                    await engine.abort(self._target, self._images, await self._fired)
                raise
            return await engine.finish(self._target, self._images, pid)
        except RestoreFailed as error:
            self.errors.append(error)
            log.error("%s", with_log(error))
        return None

    def _fire(self, engine: Engine) -> None:
        self.close()
        self._fired = asyncio.get_running_loop().create_future()
        try:
            self._plan = engine.plan(self._target, self._images, self._stdio)
        except (ZeropodError, OSError) as error:
            self.failed(unplanned(self._target.id, error))
            return
        with contextlib.suppress(OSError):  # only an attempt that seemed to succeed needs it
            self._trigger.hold()
        if not self._trigger.arm(self._plan):
            self._trigger.wake()


def unplanned(id: str, error: Exception) -> RestoreFailed:
    """Of a plan that could not be made: nothing has run, so it may be tried again."""
    retryable = not isinstance(error, ImageCorrupt)
    return RestoreFailed(f"restore {id}: {error}", retryable=retryable)
