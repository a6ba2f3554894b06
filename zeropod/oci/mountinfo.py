"""/proc/<pid>/mountinfo, a line at a time.

A node has some mounts for each container, and every sleep looks at all of them; with a hundred
pods the file is as large as a shim. So nothing here keeps more than one line, and who reads keeps
what it was looking for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPES = ((rb"\040", b" "), (rb"\011", b"\t"), (rb"\012", b"\n"), (rb"\134", b"\\"))


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line: the file system's device, the directory of it that is mounted, where, and what.

    ``id``: of the mount. ``options``: of the file system, as it was mounted first; on cgroup v1
    they name controllers.
    """

    id: int
    device: str
    root: str
    point: str
    type: str
    options: str


def entries(pid: int | str = "self", *, type: str = "") -> Iterator[MountEntry]:
    """The mounts that a process sees, in their order. ``type``: only those that begin so.

    Raises:
        FileNotFoundError: the process is gone.
    """
    wanted = os.fsencode(f" - {type}")
    with _path(pid).open("rb") as file:  # binary: a decoder per sleep is memory
        for line in file:
            if wanted in line:
                yield parse(line)


def _path(pid: int | str) -> Path:
    return Path(f"/proc/{pid}/mountinfo")


def parse(line: bytes) -> MountEntry:
    """A line of mountinfo, taken apart."""
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    fields = before.split(b" ")
    kind, _, rest = after.partition(b" ")
    return MountEntry(
        int(fields[0]),
        os.fsdecode(fields[2]),
        _unescaped(fields[3]),
        _unescaped(fields[4]),
        os.fsdecode(kind),
        os.fsdecode(rest.rpartition(b" ")[2]),
    )


def _unescaped(field: bytes) -> str:
    for octal, plain in _ESCAPES:
        field = field.replace(octal, plain)
    return os.fsdecode(field)
