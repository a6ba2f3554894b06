"""What a signal does to a container that may be asleep.

What init does with each signal is remembered from before it fell asleep (`disposition.py`): one
that it handles wakes it and is delivered, one that it ignores means nothing, any other one ends the
container without a restore. SIGKILL ends it at every moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from zeropod.config import StopAsleep
from zeropod.container.disposition import Delivery, Dispositions, Effect
from zeropod.container.phase import UP, Phase
from zeropod.errors import FailedPrecondition, RestoreFailed
from zeropod.oci.reaper import Exit

if TYPE_CHECKING:
    from zeropod.container.scaler import Scaler
    from zeropod.container.sleeper import Sleeper

_SIGKILL: Final = 9
_SIGTERM: Final = 15
_HANDLERS_S: Final = 5.0
_LOOK_S: Final = 0.01


class Signals:
    """Of one container that scales."""

    def __init__(self, scaler: Scaler, container: Sleeper) -> None:
        self._scaler = scaler
        self._container = container
        self._asleep = Dispositions()
        self._settled_at = 0.0

    def look(self, pid: int) -> None:
        """Remember what init does with signals. Raises OSError when it is gone."""
        self._asleep = Dispositions.of(pid)

    def started_afresh(self) -> None:
        """Init has begun anew just now, and has no handlers yet."""
        self._settled_at = asyncio.get_running_loop().time() + _HANDLERS_S

    async def kill(self, number: int) -> Exit | Delivery:
        """A signal for a container that may be asleep.

        Returns how the container ended by it, or whether it is still to be delivered.
        """
        scaler = self._scaler
        if number != _SIGKILL:
            await scaler.past(Phase.DUMPING, Phase.WAKING)
        elif scaler.phase is Phase.DUMPING:
            with contextlib.suppress(ProcessLookupError):  # the dump has ended it
                os.kill(self._container.init.live_pid, _SIGKILL)
            await scaler.past(Phase.DUMPING)
        effect = self._asleep.effect(number) if number > 0 else Effect.IGNORED
        asleep = scaler.phase is Phase.ASLEEP
        settings = self._container.settings
        discard = asleep and number == _SIGTERM and settings.stop_asleep is StopAsleep.DISCARD
        if effect is Effect.HANDLED and not discard:
            cause = f"signal {number}"
            with (
                scaler.inhibit(cause, counts=asleep),
                contextlib.suppress(RestoreFailed, FailedPrecondition),
            ):
                await scaler.ensure_awake(cause)
                await self._handles_signals()
            return Delivery.DUE
        if asleep and effect is Effect.IGNORED:
            return Delivery.MOOT
        if scaler.phase in UP or not await scaler.abandon():
            return Delivery.DUE
        return Exit(128 + number, time.time_ns())

    async def _handles_signals(self) -> None:
        """Wait until init treats signals as the one that slept did, or for a bound.

        A restored one does at once. One that was started afresh, by whatever has woken it, has to
        get there first: what comes before is lost on the first process of a pid namespace.
        """
        with contextlib.suppress(OSError, TimeoutError):  # it has ended; it never will
            async with asyncio.timeout_at(self._settled_at):
                while (pid := self._container.init.live_pid) and self._scaler.phase in UP:
                    if Dispositions.of(pid) == self._asleep:
                        return
                    await asyncio.sleep(_LOOK_S)
