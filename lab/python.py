"""The interpreter of the node: Python from a newer Debian suite than the machine's.

A sleeping pod's shim shares the zygote's memory; how much of it stays shared depends on the
interpreter (from 3.12 on objects can be immortal, and using one writes nothing). The product runs
on 3.11 too, with more memory per pod; the development environment keeps the machine's Python.

Unpacked with its own libc and bound to it, as lab/tools.py does; the headers stay for building.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from lab import paths
from lab.debian import PrivateApt, unpack
from lab.steps import fingerprint, is_made, making, run, timed

_LAYOUT = "1"
"""Changes when the result of this file changes, so that an older one is made anew."""

_NAME = "python3.13"
_SUITE = "trixie"
_TRIPLET = f"{os.uname().machine}-linux-gnu"
_LIBRARIES = Path("usr/lib") / _TRIPLET
_PACKAGES = (f"{_NAME}-minimal", f"lib{_NAME}-stdlib", f"lib{_NAME}-dev")

INTERPRETER = paths.PYTHON / "usr/bin" / _NAME
COMPILER_FLAGS = f"-I{paths.PYTHON / 'usr/include'}"
"""What compiling for it needs beside what it says itself: Debian keeps pyconfig.h apart."""


def build() -> None:
    """Make ``.lab/python`` unless it is there."""
    made_from = fingerprint([_LAYOUT, _NAME, _SUITE, str(paths.PYTHON)])
    if is_made(paths.PYTHON, made_from):
        return
    with (
        timed(f"python: {_NAME} from Debian {_SUITE}"),
        making(paths.PYTHON, made_from) as part,
    ):
        apt = PrivateApt(paths.DOWNLOADS / _SUITE, (_SUITE,))
        apt.update()
        unpack(apt.download(list(_PACKAGES)), part)
        _prune(part)
        _bind(part)
        version = apt.versions(_PACKAGES[0])[0]
        (part / "versions.json").write_text(json.dumps({_NAME: version}, indent=2) + "\n")
    run([INTERPRETER, "-c", "import asyncio, ctypes, ssl, venv"])


def versions() -> dict[str, str]:
    """The version in use, package → Debian version."""
    found = json.loads((paths.PYTHON / "versions.json").read_text())
    return {str(name): str(version) for name, version in found.items()}


def _prune(part: Path) -> None:
    """Keep the headers of Python alone: a newer libc's would shadow those of the compiler."""
    include = part / "usr/include"
    for folder in (include, include / _TRIPLET):
        for entry in folder.iterdir():
            if entry.name not in (_NAME, _TRIPLET):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for archive in part.rglob("*.a"):
        archive.unlink()


def _bind(part: Path) -> None:
    loader = next((part / _LIBRARIES).glob("ld-linux*.so.*"))
    run(
        [
            *("patchelf", "--force-rpath", "--set-rpath", paths.PYTHON / _LIBRARIES),
            *("--set-interpreter", paths.PYTHON / _LIBRARIES / loader.name),
            part / "usr/bin" / _NAME,
        ]
    )
