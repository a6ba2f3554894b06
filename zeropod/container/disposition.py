"""What init does with a signal, remembered from before it fell asleep."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

_NOTHING: Final = frozenset({signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT})
_STOPS: Final = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})


class Effect(Enum):
    HANDLED = "handled"
    IGNORED = "ignored"
    ENDS = "ends it"


class Delivery(Enum):
    """What is left to do about a signal."""

    DUE = "to be sent"
    MOOT = "means nothing to the sleeper"


@dataclass(frozen=True, slots=True)
class Dispositions:
    """Bit n - 1 of a mask stands for signal n, as in /proc/<pid>/status."""

    caught: int = 0
    ignored: int = 0

    @classmethod
    def of(cls, pid: int) -> Dispositions:
        """Those of a live process. Raises OSError when it is gone."""
        masks = {
            key: int(value, 16)
            for key, value in (
                line.split(b":\t", 1)  # binary: a process's name is any bytes
                for line in Path(f"/proc/{pid}/status").read_bytes().splitlines()
                if line.startswith((b"SigCgt:", b"SigIgn:"))
            )
        }
        return cls(masks[b"SigCgt"], masks[b"SigIgn"])

    def effect(self, number: int) -> Effect:
        """What the signal would do. Signals that stop a process count as handled: they need it."""
        bit = 1 << (number - 1)
        if number == signal.SIGKILL:
            return Effect.ENDS
        if number in _STOPS or self.caught & bit:
            return Effect.HANDLED
        if number in _NOTHING or self.ignored & bit:
            return Effect.IGNORED
        return Effect.ENDS
