"""What is told of a container's sleeps: to whoever asks, and to whoever has subscribed.

`Outcome` is what an operator sees, coarser than `phase.Phase`: a container that is being dumped
still runs, one that is being restored is still scaled down.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from zeropod.errors import ResourceExhausted

_MAX_BEHIND: Final = 1024


class Outcome(Enum):
    SCALED_DOWN = "scaled down"
    RUNNING = "running"
    STOPPING = "stopping"
    CHECKPOINT_FAILED = "checkpoint failed"
    RESTORE_FAILED = "restore failed"


@dataclass(frozen=True, slots=True)
class Report:
    """``at_ns``: unix time of the change; ``duration_ns``: what it took, 0 where it took nothing.

    ``log``: of a failure, what it was and CRIU's last lines. ``reason``: why it does not sleep.
    """

    id: str
    name: str
    pod_name: str
    pod_namespace: str
    outcome: Outcome
    at_ns: int
    duration_ns: int = 0
    log: str = ""
    reason: str = ""


@dataclass(slots=True)
class Tally:
    """How often something happened, and when and how long the last time."""

    count: int = 0
    errors: int = 0
    last_ns: int = 0
    last_duration_ns: int = 0

    def done(self, duration_ns: int) -> None:
        """It succeeded just now."""
        self.count += 1
        self.last_ns = time.time_ns()
        self.last_duration_ns = duration_ns


@dataclass(slots=True)
class WakeUp:
    """One wake-up, and when what happened: CLOCK_MONOTONIC; 0: not (yet).

    The app may listen, and answer, before the runtime's restore has ended.
    """

    by: str
    fired_ns: int
    listens_ns: int = 0
    first_byte_ns: int = 0
    restored_ns: int = 0

    def phases(self) -> dict[str, int]:
        """Nanoseconds from the firing to each thing that has happened, in their order."""
        ends = {
            "listens": self.listens_ns,
            "first byte": self.first_byte_ns,
            "restored": self.restored_ns,
        }
        known = ((at_ns - self.fired_ns, name) for name, at_ns in ends.items() if at_ns)
        return {name: max(took_ns, 0) for took_ns, name in sorted(known)}


@dataclass(slots=True)
class History:
    """Of one container."""

    checkpoints: Tally = field(default_factory=Tally)
    restores: Tally = field(default_factory=Tally)
    last_wake: WakeUp | None = None


class Feed:
    """Reports of a shim's containers, to any number of subscribers."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Report]] = set()

    def publish(self, report: Report) -> None:
        """One that is too far behind gets no more, and is told so: it shall ask anew."""
        for queue in tuple(self._queues):
            try:
                queue.put_nowait(report)
            except asyncio.QueueFull:
                self._queues.discard(queue)

    @contextlib.contextmanager
    def subscription(self) -> Iterator[AsyncIterator[Report]]:
        """All that is published from now on.

        Raises:
            ResourceExhausted: from the iterator, when more than 1024 were not taken.
        """
        queue: asyncio.Queue[Report] = asyncio.Queue(_MAX_BEHIND)
        self._queues.add(queue)
        try:
            yield self._follow(queue)
        finally:
            self._queues.discard(queue)

    async def _follow(self, queue: asyncio.Queue[Report]) -> AsyncIterator[Report]:
        while queue in self._queues or not queue.empty():
            yield await queue.get()
        raise ResourceExhausted(f"more than {_MAX_BEHIND} reports were not taken: subscribe anew")
