"""What a container tells: plain values, made into containerd's messages by the task layer.

Order: Created < Started < Exited < Deleted, and for an exec ExecAdded < ExecStarted < Exited <
Deleted; exactly one Exited each. ``process_id`` is the container's id for its init, else the
exec's.
"""

from __future__ import annotations

from dataclasses import dataclass

from zeropod.oci.mounts import Mount
from zeropod.oci.reaper import Exit


@dataclass(frozen=True, slots=True)
class Stdio:
    """Paths that containerd gave, "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Created:
    id: str
    bundle: str
    pid: int
    stdio: Stdio
    rootfs: tuple[Mount, ...] = ()
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    id: str
    pid: int


@dataclass(frozen=True, slots=True)
class ExecAdded:
    id: str
    exec_id: str


@dataclass(frozen=True, slots=True)
class ExecStarted:
    id: str
    exec_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    id: str
    process_id: str
    pid: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class Deleted:
    id: str
    process_id: str
    pid: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel has killed one of the container's processes. Told before that is its exit."""

    id: str


@dataclass(frozen=True, slots=True)
class Paused:
    id: str


@dataclass(frozen=True, slots=True)
class Resumed:
    id: str


Event = (
    Created | Started | ExecAdded | ExecStarted | Exited | Deleted | OutOfMemory | Paused | Resumed
)
