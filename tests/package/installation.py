"""Building the package from a copy of the tree, and installing it without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
LAUNCHER: Final = "containerd-shim-zeropod-v2"
_FOLDERS: Final = ("zeropod", "csrc", "bpf", "proto")
_FILES: Final = ("setup.py", "pyproject.toml", "MANIFEST.in", "VERSION", "LICENSE")


def copy_tree(target: Path) -> Path:
    """What git would give, as far as the build reads it."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "_build_info.py")
    for name in _FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for generated in (target / "zeropod/_fastpath").glob("*.c"):
        generated.unlink()
    for name in (*_FILES, "README.md", "CHANGELOG.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    return target


def build(tree: Path, kind: str) -> Path:
    """``kind``: bdist_wheel or sdist. Returns the one file that it made."""
    before = set((tree / "dist").glob("*"))
    subprocess.run(
        [sys.executable, "setup.py", "-q", kind], cwd=tree, check=True, capture_output=True
    )
    (made,) = set((tree / "dist").glob("*")) - before
    return made


def install(prefix: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel; returns its ``bin``."""
    venv.create(prefix, with_pip=False, symlinks=True)
    python = prefix / "bin/python3"
    argv = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*argv, "--no-index", str(wheel)], check=True)
    (site,) = prefix.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return prefix / "bin"
