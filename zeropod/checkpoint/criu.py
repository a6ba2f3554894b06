"""What we say to CRIU and what its log says to us.

runc asks CRIU for the highest log level and no configuration file can lower it, so the log always
holds the milestones that `judge` looks for. CRIU lets the processes go right after the line of the
pre-resume scripts: a log that ends in "Restoring FAILED" and does not have that line proves that
not one instruction of the app ran. A log that just ends (CRIU was killed, the disk was full) proves
nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Final

from zeropod import _fastpath

BINARY: Final = "criu"
CONFIG_ANNOTATION: Final = "org.criu.config"
TAIL_LINES: Final = 20
NODE_CONFIG: Final = Path("/etc/criu/runc.conf")
STATS_RESTORE: Final = "stats-restore"
"""Written to the work directory right after the processes were let go."""

_PROGRAMS: Final = Path(_fastpath.__file__).parent / "bin"
_TAIL_BYTES: Final = 64 * 1024
TEMPORARY: Final = Path("/tmp/.criu.mntns.*")
_MOUNT_TREE: Final = re.compile(r"/tmp/\.criu\.mntns\.\w{6}")
_ERROR: Final = re.compile(r"Error \([^)]*\): (.*)")
_HARMLESS: Final = ("RLIMIT_NOFILE",)
_GOING: Final = ("Running pre-resume scripts", "Tasks resumed")
_FAILED: Final = "Restoring FAILED"
_DUMPED: Final = "Dumping finished successfully"

# network-lock: iptables runs cost 90 ms per restore, and rules left behind drop the next
# connection; nobody can talk to a sleeping app but through us. tcp-close, skip-in-flight:
# connections end with the sleep. ghost-limit: a deleted file that is held open is the app's state.
_OPTIONS: Final = ("tcp-close", "skip-in-flight", "network-lock skip", "ghost-limit 64M")

# What CRIU's messages mean to an operator.
_REMEDIES: Final = (
    ("io_uring", "the app uses io_uring, which CRIU cannot dump"),
    ("proto 262", "the app uses MPTCP, which CRIU cannot dump (Go: GODEBUG=multipathtcp=0)"),
    ("protocol 262", "the app uses MPTCP, which CRIU cannot dump (Go: GODEBUG=multipathtcp=0)"),
    (
        "SysVIPC shmem",
        "the app has System V shared memory attached, in the IPC namespace of its pod",
    ),
    (
        "External socket is used",
        "the app is connected to a unix socket outside of its container",
    ),
    ("Can't get rlimit", "CAP_SYS_RESOURCE is missing to dump processes that are not root's"),
    ("No space left", "the disk of the images is full"),
)


class Verdict(Enum):
    """What is certain of a restore that did not succeed."""

    NEVER_RAN = "no instruction of the app ran"
    UNKNOWN = "the app may have run"


def config(external: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> str:
    """The text of a configuration file; its values win over what runc asks for.

    ``external``: mount points in the container and the host's directories to bind there.
    """
    pairs = external.items() if isinstance(external, Mapping) else external
    lines = [*_OPTIONS, *(f"external mnt[{point}]:{source}" for point, source in pairs)]
    return "\n".join(lines) + "\n"


def config_file(bundle: Path) -> Path:
    """The file that the runtime's CRIU reads, by `CONFIG_ANNOTATION`."""
    return bundle / "criu.conf"


def node_config(*, established: bool) -> str:
    """What the runtime would have CRIU read without us: the node's own file.

    Without one the network is locked (by iptables, which may not be there) only where there may be
    connections that are to go on, ``established``.
    """
    try:
        return NODE_CONFIG.read_text()
    except FileNotFoundError:
        return "" if established else "network-lock skip\n"


def environment() -> dict[str, str]:
    """For the runtime, and so for its CRIU: our `tar` is found before the system's.

    CRIU saves and restores each tmpfs by `tar --gzip`; csrc/tar does the simple ones without the
    4 to 12 ms that the start of GNU tar and gzip takes, and leaves the others to them.
    """
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{_PROGRAMS}{os.pathsep}{path}"}


def find(path: str | None = None) -> str | None:
    """The CRIU that the runtime will find, None where there is none."""
    return shutil.which(BINARY, path=path)


def log_tail(log: Path, lines: int = TAIL_LINES) -> tuple[str, ...]:
    """The last lines, oldest first; empty without a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-lines:])


def reason(log: Path) -> str:
    """The first error in a log, which is the cause of those after it, and its remedy. Or ""."""
    for line in _text(log).splitlines():
        error = _ERROR.search(line)
        if error and not any(word in line for word in _HARMLESS):
            said = error[1].strip()
            meaning = next((text for word, text in _REMEDIES if word in said), "")
            return f"{said} ({meaning})" if meaning else said
    return ""


def judge(log: Path) -> Verdict:
    """What the log of a failed restore proves, once nothing of the attempt lives any more."""
    if not log.exists():
        return Verdict.NEVER_RAN  # opened before CRIU looks at the images
    text = _text(log)
    if _FAILED in text and not any(line in text for line in _GOING):
        return Verdict.NEVER_RAN
    return Verdict.UNKNOWN


def let_go(log: Path) -> bool:
    """Whether the restore that wrote this log set the processes going."""
    return "Tasks resumed" in _text(log)


def dumped(log: Path) -> bool:
    """Whether the dump that wrote this log has all it wanted, and has ended the processes."""
    return _DUMPED in _text(log)


def mount_trees(log: Path) -> set[Path]:
    """Directories in /tmp where this restore built its mounts; CRIU removes them when it ends."""
    return {Path(found) for found in _MOUNT_TREE.findall(_text(log))}


def _text(log: Path) -> str:
    try:
        return log.read_text(errors="replace")
    except OSError:
        return ""
