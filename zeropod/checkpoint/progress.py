"""How long a restore may take: as long as it gets on, and not for ever.

On a busy node a restore may take many times what it takes alone, and killing it costs the app its
memory. One that hangs has to be killed, also where CRIU's restorer spins on images that are too
short. What tells them apart is that the processes read: every step of CRIU reads an image or /proc,
and the restorer that spins reads nothing, for all the CPU time that it has and the log that it
writes.

Time in which they could not read does not count: when they waited for a processor, or in the
kernel for what others held (a hundred restores make their namespaces at once), or when this shim
was not run itself and so did not look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_EXTENSIONS: Final = 12
_LOOKS: Final = 8


@dataclass(frozen=True, slots=True)
class Look:
    """What processes have done and suffered.

    ``read``: bytes until now; a change is progress. ``delayed_ns``: until now, waiting for a
    processor. ``blocked``: one of them waits in the kernel in this moment, and cannot be killed.
    """

    read: int
    delayed_ns: int = 0
    blocked: bool = False


class Patience:
    """Runs out ``seconds`` after the last progress, and after 12 times as long at the latest.

    Times are those of one monotonic clock, in seconds. Look every ``interval_s``.
    """

    __slots__ = ("_begin", "_last", "_looked", "_seconds", "_since", "interval_s")

    def __init__(self, seconds: float, now: float) -> None:
        self.interval_s = seconds / _LOOKS
        self._seconds = seconds
        self._begin = self._since = self._looked = now
        self._last = Look(-1)

    def spent(self, now: float, look: Look) -> bool:
        """Whether it has run out."""
        elapsed, self._looked = now - self._looked, now
        last, self._last = self._last, look
        if look.read != last.read:
            self._since = now
        elif look.blocked:
            self._since += elapsed
        else:
            delayed_s = (look.delayed_ns - last.delayed_ns) / 1e9
            self._since += min(elapsed, max(delayed_s, elapsed - self.interval_s, 0))
        late = now - self._begin >= (1 + _EXTENSIONS) * self._seconds
        return late or now - self._since >= self._seconds


def look(pids: Iterable[int]) -> Look:
    """Look at processes; at nothing of one that has ended."""
    read = delayed_ns = 0
    blocked = False
    for pid in pids:
        read += _bytes_read(pid)
        for task in _tasks(pid):
            delayed_ns += _delayed_ns(task)
            blocked = blocked or _state(task) == b"D"
    return Look(read, delayed_ns, blocked)


def children(pid: int) -> set[int]:
    """Those of all its threads; none where it has ended."""
    found: set[int] = set()
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            found.update(map(int, (task / "children").read_bytes().split()))
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _bytes_read(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/io").read_bytes().split(None, 2)[1])  # "rchar: 123"
    except (OSError, IndexError):  # it has ended
        return 0


def _delayed_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_bytes().split()[1])
    except (OSError, IndexError):  # it has ended, or the kernel does not count
        return 0


def _state(task: Path) -> bytes:
    try:
        return (task / "stat").read_bytes().rpartition(b")")[2].split(None, 1)[0]
    except (OSError, IndexError):
        return b""
