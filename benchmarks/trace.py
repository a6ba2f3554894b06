"""Kernel tracepoints, seen from outside: nothing is added to what is traced.

Tracefs is mounted detached, so that no directory of the machine changes and the mount ends with
this process; the events go into a trace instance of our own, whose clock is CLOCK_MONOTONIC as
Python and the shim use it. Only events that are rare are switched on: fork, exec, exit, and the
states of TCP sockets.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups
from lab.steps import LabError

EVENTS = (
    "sched/sched_process_fork",
    "sched/sched_process_exec",
    "sched/sched_process_exit",
    "sock/inet_sock_set_state",
)
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""System call numbers: the same on every architecture."""
_FSCONFIG_CMD_CREATE = 6
_LIBC = ctypes.CDLL(None, use_errno=True)
_LINE = re.compile(r"\s*.+-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+(?P<s>\d+)\.(?P<us>\d{6}): (?P<rest>.*)")
_LOST = re.compile(r"LOST (\d+) EVENTS")


@dataclass(frozen=True, slots=True)
class Event:
    """``name`` without its group; ``pid``: the thread that caused it, as the machine counts."""

    at_ns: int
    pid: int
    name: str
    fields: dict[str, str]


def parse(text: str) -> list[Event]:
    """The events of a trace file, in the order of their time. ValueError where some were lost."""
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if _LOST.search(line):
            raise ValueError(f"the trace is not whole: {line.strip()}")
        if match := _LINE.match(line):
            name, _, values = match["rest"].partition(": ")
            at_ns = int(match["s"]) * 1_000_000_000 + int(match["us"]) * 1_000
            fields = dict(re.findall(r"(\w+)=(\S+)", values))
            found.append(Event(at_ns, int(match["pid"]), name, fields))
    return sorted(found, key=lambda event: event.at_ns)


class Trace:
    """A trace instance that runs."""

    def __init__(self, instance: Path) -> None:
        self._instance = instance

    def switch(self, on: bool) -> None:
        """Begin or cease to trace."""
        for event in EVENTS:
            (self._instance / "events" / event / "enable").write_text("1" if on else "0")

    def clear(self) -> None:
        (self._instance / "trace").write_text("")

    def events(self) -> list[Event]:
        """What has happened since `clear`."""
        return parse((self._instance / "trace").read_text())


@contextmanager
def running() -> Iterator[Trace]:
    """Trace ``EVENTS`` until the end of the block.

    Raises LabError where the kernel has no tracefs or lacks one of the events.
    """
    mount = _mount_tracefs()
    try:
        instance = Path(f"/proc/self/fd/{mount}/instances/{cgroups.NAME}")
        with suppress(FileNotFoundError):  # what a killed benchmark left
            instance.rmdir()
        instance.mkdir()
        try:
            (instance / "trace_clock").write_text("mono")
            made = Trace(instance)
            made.switch(True)
            yield made
        finally:
            instance.rmdir()
    except FileNotFoundError as error:
        raise LabError(f"this kernel does not trace what is needed: {error}") from error
    finally:
        os.close(mount)


def _mount_tracefs() -> int:
    """A descriptor of a detached mount."""
    try:
        context = _call(_FSOPEN, b"tracefs", 1)
    except OSError as error:
        raise LabError(f"tracefs cannot be mounted: {error.strerror}") from error
    try:
        _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, context, 1, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: bytes | int | None) -> int:
    result: int = _LIBC.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
