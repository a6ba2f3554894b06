"""The zeropod of the node: a wheel built from this checkout, in a virtual environment of its own.

It is built for and runs on the node's interpreter (lab/python.py).

The sources are mirrored below ``.lab`` and the wheel is built there, so that the node never sees
the source tree and a build never meets a half-saved file twice. Nothing happens while the sources
are the ones that the installed wheel was made from.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from lab import paths, python
from lab.steps import STAMP, fingerprint, remove, run, say, timed, write_file

_MIRROR = paths.ROOT / "wheel/source"
_DIST = paths.ROOT / "wheel/dist"
_BUILDER = paths.ROOT / "wheel/venv"
"""The build's own tools, for the node's interpreter and in the versions of development."""
_TOOLS = ("setuptools", "wheel", "Cython")
_FOLDERS = ("zeropod", "csrc", "bpf", "proto")
_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "VERSION", "LICENSE*", "README*")
_NEEDED = ("setup.py", "bpf/redirector.bpf.c", "zeropod/_fastpath")


def _sources() -> list[Path]:
    """The files that a wheel is made from, as git sees them: tracked or new, not ignored."""
    listing = run(
        [
            *("git", "-C", paths.CHECKOUT, "ls-files", "-z", "--cached", "--others"),
            *("--exclude-standard", "--", *_FOLDERS, *_FILES),
        ]
    )
    names = sorted({name for name in listing.split("\0") if name})
    return [Path(name) for name in names if (paths.CHECKOUT / name).is_file()]


def build() -> bool:
    """Build and install the wheel where the sources changed. Returns whether zeropod is there."""
    for needed in _NEEDED:
        if not (paths.CHECKOUT / needed).exists():
            say(f"wheel: this checkout has no {needed}; the node has the stock shim only")
            return False
    sources = _sources()
    interpreter = f"{python.INTERPRETER} {python.versions()}"
    requirements = fingerprint([paths.CHECKOUT / "pyproject.toml", interpreter, *_pinned()])
    made_from = fingerprint(
        [part for name in sources for part in (str(name), paths.CHECKOUT / name)] + [requirements]
    )
    stamp = paths.VENV / STAMP
    if stamp.exists() and stamp.read_text() == made_from:
        return True
    with timed("wheel: built from the checkout and installed"):
        stamp.unlink(missing_ok=True)
        _mirror(sources)
        wheel = _build(requirements)
        _install(wheel, requirements)
        write_file(stamp, made_from)
    return True


def _mirror(sources: list[Path]) -> None:
    """Bring the mirror to the state of the checkout; unchanged files keep their times."""
    _MIRROR.mkdir(parents=True, exist_ok=True)
    wanted = set(sources)
    for entry in _MIRROR.iterdir():
        if entry.name == "build":
            for built in entry.iterdir():
                if not built.name.startswith("temp"):
                    remove(built)
        elif entry.name.endswith(".egg-info"):
            remove(entry)
    for found in _MIRROR.rglob("*"):
        inside = found.relative_to(_MIRROR)
        if found.is_file() and inside.parts[0] != "build" and inside not in wanted:
            found.unlink()
    for name in sources:
        source, copy = paths.CHECKOUT / name, _MIRROR / name
        data = source.read_bytes()
        if not copy.exists() or copy.read_bytes() != data:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
            shutil.copymode(source, copy)


def _pinned() -> list[str]:
    """The build's tools as ``name==version``."""
    lines = (paths.CHECKOUT / "requirements-dev.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in _TOOLS]


def _pip(environment: Path, *arguments: str | Path, cwd: Path | None = None) -> None:
    """The development environment's pip, at work in another one."""
    run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"),
            *("--python", environment / "bin/python", *arguments),
        ],
        cwd=cwd,
        env={**os.environ, "CFLAGS": python.COMPILER_FLAGS},
    )


def make_environment(target: Path, *wanted: str | Path) -> None:
    """A virtual environment of the node's interpreter, with what is wanted."""
    remove(target)
    run([python.INTERPRETER, "-m", "venv", "--without-pip", target])
    _pip(target, "install", *wanted)


def _build(requirements: str) -> Path:
    known = _BUILDER / "requirements"
    if not known.exists() or known.read_text() != requirements:
        make_environment(_BUILDER, *_pinned())
        write_file(known, requirements)
    remove(_DIST)
    _pip(
        _BUILDER,
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", _DIST, "."),
        cwd=_MIRROR,
    )
    return next(_DIST.glob("*.whl"))


def _install(wheel: Path, requirements: str) -> None:
    """Install the wheel; with its dependencies only where these may have changed."""
    known = paths.VENV / "requirements"
    if not known.exists() or known.read_text() != requirements:
        make_environment(paths.VENV, wheel)
        write_file(known, requirements)
    else:
        _pip(paths.VENV, "install", "--no-deps", "--force-reinstall", wheel)
