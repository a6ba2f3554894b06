"""CRIU, runc, containerd and the CNI plug-ins from Debian's newest suite, made to run right here.

Their binaries need a newer libc than the machine has. The packages are unpacked with that libc, and
each binary gets its loader and library path written into it (patchelf). A wrapper script around the
loader would not do: runc executes /proc/self/exe again.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import paths
from lab.debian import PrivateApt, unpack
from lab.steps import LabError, fingerprint, is_made, making, run, say, timed

_LAYOUT = "1"
"""Changes when the result of this file changes, so that an older one is made anew."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A package, the upstream versions it was tested with (low ≤ v < high), and its programs."""

    package: str
    low: tuple[int, ...]
    high: tuple[int, ...]
    programs: tuple[str, ...]

    def accepts(self, version: str) -> bool:
        return self.low <= upstream(version) < self.high


TOOLS = (
    Tool("criu", (4, 2), (4, 3), ("usr/sbin/criu",)),
    Tool("runc", (1, 3), (1, 5), ("usr/sbin/runc",)),
    Tool("crun", (1, 20), (2,), ("usr/bin/crun",)),
    Tool(
        "containerd",
        (2, 1),
        (2, 5),
        ("usr/bin/containerd", "usr/bin/ctr", "usr/bin/containerd-shim-runc-v2"),
    ),
    Tool("containernetworking-plugins", (1, 4), (2,), ()),
)
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
_CNI_FOLDER = "usr/lib/cni"


def upstream(version: str) -> tuple[int, ...]:
    """The numbers of a Debian version: ``1:2.1.9+ds1-5`` → (2, 1, 9)."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _choose(apt: PrivateApt, wider: PrivateApt) -> tuple[PrivateApt, dict[str, str]]:
    """The version of each tool: sid's where it was tested, else a tested one of trixie."""
    apt.update()
    newest = {tool.package: apt.versions(tool.package)[0] for tool in TOOLS}
    if all(tool.accepts(newest[tool.package]) for tool in TOOLS):
        return apt, newest
    wider.update()
    for tool in TOOLS:
        tested = [v for v in wider.versions(tool.package) if tool.accepts(v)]
        if not tool.accepts(newest[tool.package]) and tested:
            newest[tool.package] = tested[0]
    return wider, newest


def build() -> None:
    """Make ``.lab/tools`` unless it is there."""
    made_from = fingerprint([_LAYOUT, repr(TOOLS), str(paths.TOOLS)])
    if is_made(paths.TOOLS, made_from):
        _warn_untested()
        return
    with (
        timed("tools: CRIU, runc, containerd, CNI from Debian"),
        making(paths.TOOLS, made_from) as part,
    ):
        apt, versions = _choose(
            PrivateApt(paths.DOWNLOADS / "sid", ("sid",)),
            PrivateApt(paths.DOWNLOADS / "sid-trixie", ("sid", "trixie")),
        )
        packages = apt.download([f"{name}={version}" for name, version in versions.items()])
        say(f"tools: {len(packages)} packages fetched, unpacking")
        unpacked = part / "unpacked"
        unpack(packages, unpacked)
        _collect(unpacked, part)
        shutil.rmtree(unpacked)
        (part / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    _warn_untested()
    _verify()


def _collect(unpacked: Path, part: Path) -> None:
    """Copy libraries and programs out of the packages and bind the programs to the libraries."""
    libraries, programs, cni = part / "lib", part / "bin", part / "cni"
    for folder in (libraries, programs, cni):
        folder.mkdir()
    for found in unpacked.rglob("*.so*"):
        if found.parent.name.endswith("-linux-gnu") and ".so" in found.name:
            shutil.copy2(found, libraries / found.name)
    loader = next(libraries.glob("ld-linux*.so.*"), None)
    if loader is None:
        raise LabError("the libc package brought no loader ld-linux*.so")
    for tool in TOOLS:
        for program in tool.programs:
            shutil.copy2(unpacked / program, programs / Path(program).name)
    for plugin in CNI_PLUGINS:
        shutil.copy2(unpacked / _CNI_FOLDER / plugin, cni / plugin)
    for binary in (*programs.iterdir(), *cni.iterdir()):
        if _is_dynamic(binary):
            run(
                [
                    *("patchelf", "--force-rpath", "--set-rpath", paths.TOOLS / "lib"),
                    *("--set-interpreter", paths.TOOLS / "lib" / loader.name, binary),
                ]
            )


def _is_dynamic(binary: Path) -> bool:
    return "INTERP" in run(["readelf", "--program-headers", "--wide", binary])


def versions() -> dict[str, str]:
    """The versions in use, package → Debian version."""
    found = json.loads((paths.TOOLS / "versions.json").read_text())
    return {str(name): str(version) for name, version in found.items()}


def _warn_untested() -> None:
    found = versions()
    for tool in TOOLS:
        if not tool.accepts(found[tool.package]):
            low, high = (".".join(map(str, v)) for v in (tool.low, tool.high))
            say(
                f"warning: {tool.package} {found[tool.package]} is outside the tested range"
                f" {low} ≤ version < {high}"
            )


def _verify() -> None:
    """Each program starts, and CRIU finds what it needs in this kernel."""
    bin_ = paths.TOOLS / "bin"
    for program in ("runc", "containerd", "ctr", "crun"):
        run([bin_ / program, "--version"])
    # A /run of its own: CRIU leaves its cache of kernel features there.
    check = 'mount -t tmpfs tmpfs /run && exec "$0" check'
    run(["unshare", "--mount", "sh", "-c", check, bin_ / "criu"])
