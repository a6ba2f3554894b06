"""Where figures come from: machine, versions, commit, and what else the machine was doing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from lab import paths, python, tools
from lab.steps import LabError, run

BUSY_PER_CORE = 0.25
"""A load average above this, per core, before a benchmark begins is other work on the machine."""

_TOOLS = ("containerd", "runc", "criu")


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def busy(load: float, cores: int) -> bool:
    """Whether figures taken at this load average are worth little."""
    return load > BUSY_PER_CORE * cores


def collect() -> dict[str, str]:
    """Name → value, in the order in which they are shown. The node's tools must be built."""
    versions = tools.versions()
    return {
        "kernel": f"{platform.release()} {platform.machine()}",
        **{name: versions[name] for name in _TOOLS},
        "python": next(iter(python.versions().values())),
        "zeropod": commit(),
        "cores": f"{cores()} ({_cpu()})",
    }


def commit() -> str:
    """The commit of the checkout that the node's wheel is built from."""
    git = ("git", "-C", paths.CHECKOUT)
    try:
        head = run([*git, "rev-parse", "--short=12", "HEAD"]).strip()
        changed = run([*git, "status", "--porcelain", "--untracked-files=no"]).strip()
    except LabError:
        return "unknown commit"
    return f"{head} with uncommitted changes" if changed else head


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown model"
