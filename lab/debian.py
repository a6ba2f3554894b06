"""Packages of a newer Debian suite, unpacked beside the system and never installed into it.

apt runs with a private root (its own lists, cache and an empty package status) and the machine's
own mirror, whose suite is replaced: the mirror is read from the machine's apt with
``apt-get indextargets``, which understands every form of its sources. An empty status makes apt
list all dependencies down to libc, which is what the binaries then run with.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab.steps import LabError, run, write_file

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def own_codename() -> str:
    """The release that this machine runs, e.g. bookworm."""
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise LabError("/etc/os-release names no VERSION_CODENAME: the lab needs a Debian machine")


def mirror() -> str:
    """The address of the Debian archive that this machine's apt uses."""
    codename = own_codename()
    listing = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    )
    for line in listing.splitlines():
        uri, _, release = line.partition(" ")
        if release == codename:
            return uri
    raise LabError(f"this machine's apt sources have no suite {codename!r} to take the mirror from")


class PrivateApt:
    """apt with all its state below ``root``. Give one suite or several."""

    def __init__(self, root: Path, suites: tuple[str, ...]) -> None:
        self._root = root
        for folder in ("state/lists/partial", "cache/archives/partial", "none"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        write_file(root / "status", "")
        write_file(
            root / "lab.sources",
            f"Types: deb\nURIs: {mirror()}\nSuites: {' '.join(suites)}\nComponents: main\n"
            f"Signed-By: {KEYRING}\n",
        )
        self._options = [
            f"-oDir::State={root}/state",
            f"-oDir::State::status={root}/status",
            f"-oDir::Cache={root}/cache",
            f"-oDir::Etc::SourceList={root}/lab.sources",
            f"-oDir::Etc::SourceParts={root}/none",
            f"-oDir::Etc::Preferences={root}/none/preferences",
            f"-oDir::Etc::PreferencesParts={root}/none",
            "-oAPT::Install-Recommends=0",
            "-oAPT::Sandbox::User=root",
            "-oAPT::Update::Post-Invoke::=",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=3",
            "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "-oAcquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
        ]

    def update(self) -> None:
        """Fetch the package lists, or what changed in them."""
        run(["apt-get", *self._options, "-q", "update"])

    def versions(self, package: str) -> list[str]:
        """The versions of a package in these suites, newest first."""
        listing = run(["apt-cache", *self._options, "madison", package])
        return [line.split("|")[1].strip() for line in listing.splitlines() if "|" in line]

    def depends(self, package: str) -> list[str]:
        """The packages that it depends on, as it names them."""
        listing = run(["apt-cache", *self._options, "depends", package])
        return re.findall(r"^ +Depends: (\S+)$", listing, re.MULTILINE)

    def download(self, wanted: list[str]) -> list[Path]:
        """Fetch packages (``name`` or ``name=version``) with all they depend on.

        What was fetched earlier is taken from the cache. Returns the .deb files.
        """
        command = ["apt-get", *self._options, "-q", "-y"]
        run([*command, "--download-only", "install", *wanted])
        plan = run([*command, "--simulate", "install", *wanted])
        names = re.findall(r"^Inst (\S+) \((\S+) [^)]*\[(\S+)\]\)", plan, re.MULTILINE)
        files = [
            self._root / "cache/archives" / f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
            for name, version, arch in names
        ]
        lost = [file.name for file in files if not file.exists()]
        if not files or lost:
            raise LabError(f"apt says it fetched these packages, but they are not there: {lost}")
        return files

    def forget(self) -> None:
        """Remove the package lists and everything fetched."""
        shutil.rmtree(self._root, ignore_errors=True)


def unpack(packages: list[Path], target: Path) -> None:
    """Unpack the files of packages, without their scripts, below ``target``."""
    for package in packages:
        run(["dpkg-deb", "--extract", package, target])
