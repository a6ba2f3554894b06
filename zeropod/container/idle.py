"""When a container has been idle for long enough: one timer, set again from the last activity.

The kernel side keeps the time of the last packet per port; it is read when the timer is due, never
polled. What forbids a sleep meanwhile (a live exec) stops the timer; a dump that failed makes the
wait longer, twice as long each time up to an hour. What may take its time without a packet (an app
that was told to stop, and saves its data) puts it off, and so does ``min-awake`` after a wake-up.
`IdleTimer.why` says which of all that it is.

What wakes a sleeper may be a probe that cannot be read: TLS from the node. With a period longer
than the idle time it would wake it for ever, each time for nothing. So from the third such wake-up
in a row on, the wait is doubled with each, up to an hour. Once it is longer than the period the
probes keep the container awake, and so they do until somebody else wakes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple

_NS: Final = 1_000_000_000
_UNDECIDED_NS: Final = _NS
_UNDECIDED_MAX_NS: Final = 10 * _NS
_MAX_BACKOFF_NS: Final = 3_600 * _NS
_TLS_WAKES: Final = 3
FORCE: Final = "--force does it nevertheless"
"""What is said to whoever has asked for a sleep."""


class Reason(Enum):
    """What a sleep waits for."""

    HELD = "something that is under way"
    PUT_OFF = "what was left its time"
    MIN_AWAKE = "min-awake"
    UNDECIDED = "a connection of which it is not known whether it counts"
    BACK_OFF = "the back-off after a failed checkpoint"
    PACKET = "the last packet"
    EVENT = "something else that counts"


class Wait(NamedTuple):
    """``until_ns``: CLOCK_MONOTONIC; 0: nobody knows. ``what``: what it is, in words, if known."""

    reason: Reason
    until_ns: int
    what: str = ""


class Asked(NamedTuple):
    """A sleep that somebody wants, due or not. ``at_ns``: since when, CLOCK_MONOTONIC.

    ``force``: also if somebody is there, or was, since then.
    """

    at_ns: int
    force: bool


class IdleTimer:
    """Calls ``on_idle`` once when nothing has happened for ``duration_ns``; `start` sets it again.

    ``last_activity_ns``: CLOCK_MONOTONIC of the last packet, 0 for none. ``last_undecided_ns``: of
    the last one of which it is not known whether it counts; no sleep for a second after it.
    ``min_awake_ns``: what a wake-up is good for at least.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        duration_ns: int,
        last_activity_ns: Callable[[], int],
        on_idle: Callable[[], None],
        last_undecided_ns: Callable[[], int] = lambda: 0,
        min_awake_ns: int = 0,
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
        self._since_what = "its start"
        self._backoff_ns = 0
        self._not_before_ns = 0
        self._not_before_what = ""
        self._min_awake_ns = min_awake_ns
        self._awake_until_ns = 0
        self._tls_wakes = 0
        self._freed_ns = 0

    @property
    def is_due(self) -> bool:
        """Whether the container may sleep now."""
        return not self._inhibitors and self._due_ns() <= time.monotonic_ns()

    def objection(self, asked: Asked | None) -> str:
        """Why it may not sleep now; "" where it may. ``asked``: None: it must be due."""
        if asked is None:
            return "" if self.is_due else "it is not idle"
        if self._inhibitors:
            return f"{self._names()} keeps it awake"
        if asked.force:
            return ""
        if self._not_before_ns > time.monotonic_ns():
            return f"{self._not_before_what} was sent, and it is left its time ({FORCE})"
        if self._since_ns > asked.at_ns:
            return f"{self._since_what} came meanwhile ({FORCE})"
        if max(self._last_activity_ns(), self._last_undecided_ns()) > asked.at_ns:
            return f"somebody came meanwhile ({FORCE})"
        return ""

    def why(self) -> Wait:
        """What a sleep waits for. It is asked for seldom: all that counts is looked at anew."""
        if self._inhibitors:
            return Wait(Reason.HELD, 0, self._names())
        due_ns, last_ns = self._due_ns(), self._last_activity_ns()
        if due_ns > self._decided_ns():
            return Wait(Reason.UNDECIDED, due_ns)
        if due_ns <= self._not_before_ns:
            return Wait(Reason.PUT_OFF, due_ns, self._not_before_what)
        if due_ns <= self._awake_until_ns:
            return Wait(Reason.MIN_AWAKE, due_ns)
        if self._backoff_ns:
            return Wait(Reason.BACK_OFF, due_ns)
        if last_ns >= self._since_ns:
            return Wait(Reason.PACKET, due_ns)
        return Wait(Reason.EVENT, due_ns, self._since_what)

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

    def touch(self, what: str) -> None:
        """Something happened that is no packet."""
        self._since_ns, self._since_what = time.monotonic_ns(), what

    def woken(self) -> None:
        """It is back from a sleep."""
        self.touch("its wake-up")
        self._awake_until_ns = self._since_ns + self._min_awake_ns

    def put_off(self, seconds: float, what: str) -> None:
        """No sleep before so much time has passed."""
        until_ns = time.monotonic_ns() + int(seconds * _NS)
        if until_ns > self._not_before_ns:
            self._not_before_ns, self._not_before_what = until_ns, what

    def back_off(self) -> None:
        """The sleep did not come about: wait longer before the next try."""
        self._backoff_ns = min(max(2 * self._backoff_ns, self._duration_ns), _MAX_BACKOFF_NS)
        self.touch("a failed checkpoint")

    def forget_backoff(self) -> None:
        self._backoff_ns = 0

    def fired(self, *, by_tls: bool) -> None:
        """A connection wakes it; ``by_tls``: by nobody but TLS from the node."""
        self._tls_wakes = self._tls_wakes + 1 if by_tls else 0

    @property
    def damped(self) -> str:
        """Why it waits longer than it was told to; or ""."""
        if self._tls_wakes < _TLS_WAKES:
            return ""
        return (
            f"woken {self._tls_wakes} times in a row by TLS from the node, perhaps HTTPS probes: "
            f"sleeps when idle for {self._wait_ns() / _NS:g} s"
        )

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
                self.touch(f"the end of {reason}")
            if not self._inhibitors:
                self._freed_ns = time.monotonic_ns()
            if self._running and not self._inhibitors:
                self.start()

    def _names(self) -> str:
        return ", ".join(sorted(self._inhibitors))

    def _wait_ns(self) -> int:
        damped_ns = self._duration_ns << max(0, self._tls_wakes - _TLS_WAKES + 1)
        return max(self._duration_ns, min(damped_ns, _MAX_BACKOFF_NS))

    def _idle_ns(self) -> int:
        """When nothing will have counted for long enough."""
        last_ns = max(self._since_ns, self._last_activity_ns())
        return last_ns + max(self._wait_ns(), self._backoff_ns)

    def _decided_ns(self) -> int:
        """When it may sleep, if nobody opens a connection or is silent."""
        return max(self._idle_ns(), self._not_before_ns, self._awake_until_ns, self._freed_ns)

    def _due_ns(self) -> int:
        due_ns = self._decided_ns()
        if undecided_ns := self._last_undecided_ns():
            after_ns = min(undecided_ns + _UNDECIDED_NS, due_ns + _UNDECIDED_MAX_NS)
            due_ns = max(due_ns, after_ns)
        return due_ns

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
