"""How long a restore may take: as long as it gets on, and not for ever.

On a busy node a restore may take many times what it takes alone, and killing it costs the app its
memory. One that hangs has to be killed, also where CRIU's restorer spins on images that are too
short. What tells them apart is that the processes read: every step of CRIU reads an image or /proc,
and the restorer that spins reads nothing, for all the CPU time that it has and the log that it
writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

_EXTENSIONS: Final = 12
_LOOKS: Final = 8


class Patience:
    """Runs out ``seconds`` after the last progress, and after 12 times as long at the latest.

    Times are those of one monotonic clock, in seconds. Look every ``interval_s``.
    """

    __slots__ = ("_begin", "_seconds", "_seen", "_since", "interval_s")

    def __init__(self, seconds: float, now: float) -> None:
        self.interval_s = seconds / _LOOKS
        self._seconds = seconds
        self._begin = self._since = now
        self._seen: object = None

    def spent(self, now: float, seen: object) -> bool:
        """Whether it has run out. ``seen``: a value that changes when there is progress."""
        if seen != self._seen:
            self._seen, self._since = seen, now
        late = now - self._begin >= (1 + _EXTENSIONS) * self._seconds
        return late or now - self._since >= self._seconds


def bytes_read(pids: Iterable[int]) -> int:
    """What processes have read until now; nothing by one that has ended."""
    return sum(map(_bytes_read, pids))


def _bytes_read(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/io").read_bytes().split(None, 2)[1])  # "rchar: 123"
    except (OSError, IndexError):  # it has ended
        return 0
