"""When a container has been idle for long enough: one timer, set again from the last activity.

The kernel side keeps the time of the last packet per port; it is read when the timer is due, never
polled. What forbids a sleep meanwhile (a live exec) stops the timer; a dump that failed makes the
wait longer, twice as long each time up to an hour. What may take its time without a packet (an app
that was told to stop, and saves its data) puts it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

_NS: Final = 1_000_000_000
_UNDECIDED_NS: Final = _NS
_MAX_BACKOFF_NS: Final = 3_600 * _NS


class IdleTimer:
    """Calls ``on_idle`` once when nothing has happened for ``duration_ns``; `start` sets it again.

    ``last_activity_ns``: CLOCK_MONOTONIC of the last packet, 0 for none. ``last_undecided_ns``: of
    the last one of which it is not known whether it counts; no sleep for a second after it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        duration_ns: int,
        last_activity_ns: Callable[[], int],
        on_idle: Callable[[], None],
        last_undecided_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        self._loop = loop
        self._duration_ns = duration_ns
        self._last_activity_ns = last_activity_ns
        self._on_idle = on_idle
        self._last_undecided_ns = last_undecided_ns
        self._handle: asyncio.TimerHandle | None = None
        self._running = False
        self._inhibitors: Counter[str] = Counter()
        self._since_ns = time.monotonic_ns()
        self._backoff_ns = 0
        self._not_before_ns = 0

    @property
    def is_due(self) -> bool:
        """Whether the container may sleep now."""
        return not self._inhibitors and self._due_ns() <= time.monotonic_ns()

    def start(self) -> None:
        """Wait for idleness; does nothing while inhibited, the end of that starts it."""
        self._stop_handle()
        self._running = True
        if not self._inhibitors:
            wait_ns = max(0, self._due_ns() - time.monotonic_ns())
            self._handle = self._loop.call_later(wait_ns / _NS, self._on_timer)

    def stop(self) -> None:
        self._running = False
        self._stop_handle()

    def touch(self) -> None:
        """Something happened that is no packet."""
        self._since_ns = time.monotonic_ns()

    def put_off(self, seconds: float) -> None:
        """No sleep before so much time has passed."""
        self._not_before_ns = max(self._not_before_ns, time.monotonic_ns() + int(seconds * _NS))

    def back_off(self) -> None:
        """The sleep did not come about: wait longer before the next try."""
        self._backoff_ns = min(max(2 * self._backoff_ns, self._duration_ns), _MAX_BACKOFF_NS)
        self.touch()

    def forget_backoff(self) -> None:
        self._backoff_ns = 0

    @contextlib.contextmanager
    def inhibit(self, reason: str, *, counts: bool = False) -> Iterator[None]:
        """No sleep meanwhile. ``counts``: its end is activity."""
        self._inhibitors[reason] += 1
        self._stop_handle()
        try:
            yield
        finally:
            self._inhibitors -= Counter({reason: 1})
            if counts:
                self.touch()
            if self._running and not self._inhibitors:
                self.start()

    def _due_ns(self) -> int:
        last_ns = max(self._since_ns, self._last_activity_ns())
        due_ns = last_ns + max(self._duration_ns, self._backoff_ns)
        if undecided_ns := self._last_undecided_ns():
            due_ns = max(due_ns, undecided_ns + _UNDECIDED_NS)
        return max(self._not_before_ns, due_ns)

    def _on_timer(self) -> None:
        if self.is_due:
            self._handle = None
            self._on_idle()
        else:
            self.start()

    def _stop_handle(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
