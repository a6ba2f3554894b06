"""What a container has used, from its cgroup, v1 or v2.

A sleep ends the cgroup and a restore makes a new one, whose counters begin at zero: `Meter` adds
what was counted in those before, so that CPU time never goes backwards and never stands still while
the container works. Asleep, the figures are small but not zero, because metrics-server drops a pod
that reports zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from zeropod.oci.cgroups import Cgroups

_NS_PER_US: Final = 1000
_UNLIMITED: Final = 2**64 - 1
_ASLEEP_MEMORY: Final = 4096


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU in ns, memory in bytes; limits are 2**64 - 1 for none. ``v2``: read from cgroup v2."""

    v2: bool = False
    cpu_ns: int = 0
    cpu_user_ns: int = 0
    cpu_kernel_ns: int = 0
    memory: int = 0
    memory_max: int = 0
    memory_limit: int = _UNLIMITED
    anon: int = 0
    file: int = 0
    inactive_file: int = 0
    active_file: int = 0
    page_faults: int = 0
    major_faults: int = 0
    pids: int = 0
    pids_limit: int = _UNLIMITED


_COUNTERS: Final = ("cpu_ns", "cpu_user_ns", "cpu_kernel_ns", "page_faults", "major_faults")


class Meter:
    """Reads the usage of one container over all its lives, each one in a cgroup of its own.

    ``of`` finds the cgroups of a pid.
    """

    __slots__ = ("_base", "_cgroups", "_last", "_of", "_place")

    def __init__(self, of: Callable[[int], Cgroups] = Cgroups.of) -> None:
        self._of = of
        self._cgroups: Cgroups | None = None
        self._place: tuple[int, int] | None = None
        self._base = Usage()  # the counters of earlier cgroups
        self._last = Usage()

    @property
    def cgroups(self) -> Cgroups | None:
        """None while the container has none that it lives in."""
        return self._cgroups

    def begin(self, pid: int) -> None:
        """The container runs as ``pid`` from now on."""
        with contextlib.suppress(FileNotFoundError):
            cgroups = self._of(pid)
            place = _place(cgroups)
            if place != self._place:  # else the same one still stands, and counts on
                self._base, self._place = self._last, place
            self._cgroups = cgroups

    def end(self) -> None:
        """The container's processes are gone. What they used since the last `read` is lost."""
        self._cgroups = None

    def read(self) -> Usage:
        """The usage so far; while there is no cgroup, the last one with almost no memory."""
        now = _read(self._cgroups) if self._cgroups else None
        if now is None:
            return replace(
                self._last,
                cpu_ns=max(self._last.cpu_ns, 1),
                memory=_ASLEEP_MEMORY,
                anon=_ASLEEP_MEMORY,
                inactive_file=0,
                pids=0,
            )
        totals = {
            name: max(getattr(self._base, name) + getattr(now, name), getattr(self._last, name))
            for name in _COUNTERS
        }
        self._last = replace(now, **totals)
        return self._last


def _place(cgroups: Cgroups) -> tuple[int, int] | None:
    """What tells a cgroup from the next one of the same path. None: it is gone."""
    directory = cgroups.directory("memory")
    if directory is None:
        return None
    try:
        found = directory.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _read(cgroups: Cgroups) -> Usage | None:
    try:
        return _read_v2(cgroups) if cgroups.is_v2 else _read_v1(cgroups)
    except OSError:  # ENODEV: removed while it was read
        return None


def _read_v2(cgroups: Cgroups) -> Usage | None:
    root = cgroups.unified
    if root is None or not root.is_dir():
        return None
    cpu = _table(root / "cpu.stat")
    memory = _table(root / "memory.stat")
    return Usage(
        v2=True,
        cpu_ns=cpu.get("usage_usec", 0) * _NS_PER_US,
        cpu_user_ns=cpu.get("user_usec", 0) * _NS_PER_US,
        cpu_kernel_ns=cpu.get("system_usec", 0) * _NS_PER_US,
        memory=_number(root / "memory.current"),
        memory_max=_number(root / "memory.peak"),
        memory_limit=_number(root / "memory.max", _UNLIMITED),
        anon=memory.get("anon", 0),
        file=memory.get("file", 0),
        inactive_file=memory.get("inactive_file", 0),
        active_file=memory.get("active_file", 0),
        page_faults=memory.get("pgfault", 0),
        major_faults=memory.get("pgmajfault", 0),
        pids=_number(root / "pids.current"),
        pids_limit=_number(root / "pids.max", _UNLIMITED),
    )


def _read_v1(cgroups: Cgroups) -> Usage | None:
    cpu = cgroups.v1.get("cpuacct")
    mem = cgroups.v1.get("memory")
    if cpu is None or mem is None or not mem.is_dir():
        return None
    pids = cgroups.v1.get("pids", Path("/nonexistent"))
    memory = _table(mem / "memory.stat")
    return Usage(
        cpu_ns=_number(cpu / "cpuacct.usage"),
        cpu_user_ns=_number(cpu / "cpuacct.usage_user"),
        cpu_kernel_ns=_number(cpu / "cpuacct.usage_sys"),
        memory=_number(mem / "memory.usage_in_bytes"),
        memory_max=_number(mem / "memory.max_usage_in_bytes"),
        memory_limit=_number(mem / "memory.limit_in_bytes", _UNLIMITED),
        anon=memory.get("total_rss", 0),
        file=memory.get("total_cache", 0),
        inactive_file=memory.get("total_inactive_file", 0),
        active_file=memory.get("total_active_file", 0),
        page_faults=memory.get("total_pgfault", 0),
        major_faults=memory.get("total_pgmajfault", 0),
        pids=_number(pids / "pids.current"),
        pids_limit=_number(pids / "pids.max", _UNLIMITED),
    )


def _number(file: Path, missing: int = 0) -> int:
    """A file that holds a number; "max" and a missing file are ``missing``."""
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        return missing
    return int(text) if text.isdigit() else missing


def _table(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}
