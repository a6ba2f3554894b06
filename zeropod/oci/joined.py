"""Containers that have joined the shim of another one: those of a pod that of its sandbox.

containerd 2.x connects them to it and executes no `start` for them. When that shim dies, one older
than 2.4 executes `delete` for the sandbox alone, and may have removed the bundles of the others
before. So Create notes what a `delete` needs, in their own bundles and in the sandbox's:

    <bundle>/address                            of the shim; where `start` was not executed
    <bundle>/shim-binary-path                   the sandbox's: what a new containerd executes
    <sandbox's bundle>/joined/<id>/config.json  the container's own (a link)
    <sandbox's bundle>/joined/<id>/runtime.json
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from zeropod.oci.runtime import RuntimeOptions

_FOLDER: Final = "joined"
ADDRESS: Final = "address"
_CONFIG: Final = "config.json"
_PROGRAM: Final = "shim-binary-path"


class Host:
    """The shim's side. ``id``: the container that it was started for."""

    def __init__(self, id: str, socket_path: str) -> None:
        self._id = id
        self._socket_path = socket_path

    def note(self, bundle: Path, options: RuntimeOptions) -> None:
        """To be called before anything is made of the container. Raises OSError."""
        sandbox = bundle.parent / self._id
        config = bundle / _CONFIG
        if bundle == sandbox or not (sandbox.is_dir() and config.exists()):
            return
        if not (bundle / ADDRESS).exists():
            write_address(bundle, Path(self._socket_path))
            if (sandbox / _PROGRAM).exists() and not (bundle / _PROGRAM).exists():
                os.link(sandbox / _PROGRAM, bundle / _PROGRAM)
        folder = sandbox / _FOLDER / bundle.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / _CONFIG).unlink(missing_ok=True)
        os.link(config, folder / _CONFIG)
        options.note(folder)

    def forget(self, bundle: Path) -> None:
        """It is deleted. Idempotent."""
        shutil.rmtree(bundle.parent / self._id / _FOLDER / bundle.name, ignore_errors=True)


def noted(sandbox: Path) -> list[tuple[Path, Path]]:
    """(what is noted, the bundle) of every container that has joined that of ``sandbox``.

    What is noted reads like a bundle; the bundle itself may be gone.
    """
    folder = sandbox / _FOLDER
    if not folder.is_dir():
        return []
    return [(note, sandbox.parent / note.name) for note in sorted(folder.iterdir())]


def write_address(bundle: Path, socket_path: Path) -> None:
    """Note the address in the bundle, where `delete` finds it after the shim's death."""
    (bundle / ADDRESS).write_text(f"unix://{socket_path}")


def read_address(bundle: Path) -> Path | None:
    """The socket noted in a bundle."""
    try:
        address = (bundle / ADDRESS).read_text()
    except OSError:
        return None
    return Path(address.removeprefix("unix://")) if address.startswith("unix:///") else None
