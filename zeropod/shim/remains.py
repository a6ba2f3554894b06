"""A bundle that containerd could not remove, or has forgotten (see caller.py).

When a shim dies in Create, containerd unmounts the root file system and removes the bundle, while
the runtime may still live and make its mount points: in the directory that has become bare. With
anything in there, containerd gives up for good. Who executes `delete` has killed the runtime, and
can clear the directory. What it must not touch is somebody's data, so nothing goes but empty
directories and empty files, and only where nothing is mounted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from zeropod.oci.mounts import unmount_below


def clear(rootfs: Path) -> bool:
    """Remove mount points from a bare directory. Returns whether there were any.

    To be called when nothing is mounted at ``rootfs`` and the runtime is dead.
    Raises RuntimeFailed: what is mounted below it stays.
    """
    unmount_below(rootfs)
    found = False
    for folder, folders, files in os.walk(rootfs, topdown=False):
        for path in (Path(folder) / name for name in files):
            if path.is_file() and not path.is_symlink() and not path.stat().st_size:
                path.unlink()
                found = True
        for path in (Path(folder) / name for name in folders):
            with contextlib.suppress(OSError):  # not empty, or a link: no mount point
                path.rmdir()
                found = True
    return found


def remove(bundle: Path) -> None:
    """Remove a bundle, and the directory that containerd keeps for it elsewhere. Idempotent.

    Raises OSError: its root file system is not empty, or it is another one's by now.
    """
    with contextlib.suppress(FileNotFoundError):
        (bundle / "rootfs").rmdir()
    work = bundle / "work"
    elsewhere = work.readlink() if work.is_symlink() else work
    with contextlib.suppress(FileNotFoundError):  # containerd may be doing the same
        shutil.rmtree(bundle)
    shutil.rmtree(elsewhere, ignore_errors=True)
