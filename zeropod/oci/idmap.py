"""Root file systems for a user namespace: id-mapped mounts, whose files have other owners.

containerd names the mapping in the mount options ``uidmap`` and ``gidmap``. The kernel takes it as
a user namespace, and only for a mount that is nowhere yet: so what is mounted at the target is
cloned, mapped, and put in its own place. Overlay cannot be mapped itself, its lower layers can: for
the moment they lie at the target, one over the other, and overlay is given their descriptors.
Whenever this is killed, nothing but mounts at the target is left, which is where everybody looks.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeropod.oci import syscalls

_UID: Final = "uidmap="
_GID: Final = "gidmap="


@dataclass(frozen=True, slots=True)
class IdMap:
    """Both as containerd writes them: ``inside:outside:count``, separated by commas."""

    uids: str
    gids: str

    @classmethod
    def take(cls, options: Sequence[str]) -> tuple[IdMap | None, list[str]]:
        """(the mapping that mount options ask for, the other options)."""
        uids = [option.removeprefix(_UID) for option in options if option.startswith(_UID)]
        gids = [option.removeprefix(_GID) for option in options if option.startswith(_GID)]
        rest = [option for option in options if not option.startswith((_UID, _GID))]
        return (cls(uids[-1], gids[-1]) if uids and gids else None), rest

    def user_namespace(self) -> int:
        """A descriptor of a new user namespace with this mapping. Raises OSError."""
        pid = os.fork()
        if not pid:
            _stop_in_user_namespace()
        try:
            info = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if info is not None and info.si_code != os.CLD_STOPPED:
                raise OSError(info.si_status, os.strerror(info.si_status))
            for name, text in (("uid_map", self.uids), ("gid_map", self.gids)):
                lines = text.replace(":", " ").replace(",", "\n")
                Path(f"/proc/{pid}/{name}").write_text(lines)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _stop_in_user_namespace() -> None:
    """The child's part: it makes the namespace and waits for its end, or ends with an errno."""
    code = 255
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.kill(os.getpid(), signal.SIGSTOP)
    except OSError as error:
        code = error.errno or code
    finally:
        os._exit(code)


@contextlib.contextmanager
def mapped(target: Path, ids: IdMap) -> Iterator[None]:
    """Around a mount at ``target``: afterwards its files have mapped owners. Raises OSError."""
    with contextlib.ExitStack() as files:
        users = _kept(files, ids.user_namespace())
        yield
        clone = _kept(files, syscalls.open_tree(str(target)))
        syscalls.map_ids(clone, users)
        syscalls.umount2(str(target), syscalls.MNT_DETACH)
        syscalls.move_mount(clone, str(target))


@contextlib.contextmanager
def mapped_layers(target: Path, ids: IdMap, layers: Sequence[str]) -> Iterator[list[str]]:
    """Around a mount of overlay at ``target``: its lower layers, mapped. Raises OSError."""
    with contextlib.ExitStack() as files:
        users = _kept(files, ids.user_namespace())
        clones = []
        for layer in layers:
            clones.append(_kept(files, syscalls.open_tree(layer)))
            syscalls.map_ids(clones[-1], users)
            syscalls.move_mount(clones[-1], str(target))
        yield [f"/proc/self/fd/{clone}" for clone in clones]
        overlay = _kept(files, syscalls.open_tree(str(target)))
        for _ in (*clones, overlay):
            syscalls.umount2(str(target), syscalls.MNT_DETACH)
        syscalls.move_mount(overlay, str(target))


def _kept(files: contextlib.ExitStack, fd: int) -> int:
    """Closed with the others."""
    files.callback(os.close, fd)
    return fd
