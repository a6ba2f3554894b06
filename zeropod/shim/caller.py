"""Which containerd asks: its version decides what `start` answers, and it does not tell it.

containerd 1.7 to 2.2 say the same, MAX_SHIM_VERSION=2. But 1.7 refuses an answer with version 3,
and 2.x, given one with version 2, executes `start` for every container of a pod where it would
otherwise connect it to the sandbox's shim by itself. So the zygote has its containerd's own program
say ``--version``, once, before it forks. Who cannot be asked is answered with version 2, which all
understand.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

_COMM: Final = "containerd"
_TIMEOUT_S: Final = 5.0
_LINE: Final = re.compile(rb"containerd \S+ v?(\d+)\.(\d+)")
_UNKNOWN: Final = (0, 0)
_asked: dict[int, tuple[int, int]] = {}


def ask(pid: int) -> None:
    """Learn the version of the containerd ``pid``. What cannot be learned stays unknown."""
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() != _COMM:
            return  # another program may do anything when it is executed
        said = subprocess.run(
            [_COMM, "--version"],  # some are links to a program that looks at its name
            executable=f"/proc/{pid}/exe",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=_TIMEOUT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return
    _asked[pid] = version(said)


def version(said: bytes) -> tuple[int, int]:
    """(major, minor) of one that says this of itself; zeros where it does not."""
    found = _LINE.match(said)
    return (int(found[1]), int(found[2])) if found else _UNKNOWN


def joins_itself(pid: int) -> bool:
    """Whether the containerd ``pid`` is known to connect containers to their sandbox's shim."""
    return _asked.get(pid, _UNKNOWN) >= (2, 0)


def abandons(pid: int) -> bool:
    """Whether it is known to forget the containers that have joined a shim, when that dies.

    It executes no `delete` for them. One that was being started keeps its bundle for ever then.
    """
    return (2, 0) <= _asked.get(pid, _UNKNOWN) < (2, 4)


def pid_of(pidfd: int) -> int:
    """-1 when the process is no more."""
    info = Path(f"/proc/{os.getpid()}/fdinfo/{pidfd}").read_text()
    return int(info.partition("Pid:")[2].split()[0])
