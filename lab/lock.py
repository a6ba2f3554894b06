"""One user of the lab at a time, and a name for whoever holds it.

The lock is flock(2) on a file: the kernel lets go of it when the holder dies, however it dies. The
file's text says who the holder is, for those who come second.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from lab.steps import LabError


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: process, what it was started for, and since when (local time)."""

    pid: int
    command: str
    since: str


class Lock:
    """A held lock. The descriptor may be inherited by the process that goes on holding it."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    @classmethod
    def take(cls, path: Path, command: str) -> Lock:
        """Take the lock at once, or raise LabError that names the holder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LabError(_refusal(path)) from None
        lock = cls(fd, path)
        lock.write(os.getpid(), command)
        return lock

    def fileno(self) -> int:
        return self._fd

    def write(self, pid: int, command: str) -> None:
        """Say who holds it now."""
        since = datetime.now().astimezone().strftime("%H:%M:%S")
        text = json.dumps(asdict(Holder(pid, command, since))).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def release(self) -> None:
        os.close(self._fd)


def holder(path: Path) -> Holder | None:
    """Who holds the lock now; None when nobody does, whatever the file says."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    finally:
        os.close(fd)
    return None


def _read(path: Path) -> Holder:
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Holder(0, "somebody who is just beginning", "now")


def _refusal(path: Path) -> str:
    who = _read(path)
    return (
        f"the lab is in use by process {who.pid} ({who.command}) since {who.since};"
        " `python -m lab down` ends a node that was left running"
    )
