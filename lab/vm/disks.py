"""What the virtual machine is made of: its emulator, a root file system, a copy of the node.

The root is a Debian with systemd and both kernels, made once. The other disk is a copy of what the
node of this checkout has, at the same place in the file tree, because its programs are bound to it;
it is made anew for each run. What is written to the disks is thrown away at power-off.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import container_images, paths, python, tools, wheel
from lab.debian import KEYRING, PrivateApt, mirror, own_codename, unpack
from lab.lock import Lock
from lab.steps import fingerprint, is_made, making, remove, run, timed, write_file
from lab.vm import apps

_LAYOUT = "1"
"""Changes when the result of this file changes, so that an older one is made anew."""

FOLDER = paths.ROOT / "vm"
VENV = FOLDER / "venv"
"""Of the checks: the node's interpreter, and the packages of the CRI client."""

_EMULATOR = "qemu-system-x86"
_KERNEL = "linux-image-cloud-amd64"
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "udev", "iproute2", "kmod", "initramfs-tools")
_CLIENT = ("grpcio", "protobuf")
_ROOT_SIZE = "3G"
_SPARE_MB = 3000
_DISK, _PART = "lab.ext4", "lab.part"

_UNIT = f"""[Unit]
Description=The checks of zeropod in a virtual machine
After=basic.target dbus.socket
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=oneshot
Environment=ZEROPOD_SLOWNESS=20 PYTHONUNBUFFERED=1 HOME=/root
WorkingDirectory=/
ExecStartPre=mkdir -p {paths.CHECKOUT}
ExecStartPre=mount /dev/vdb {paths.CHECKOUT}
ExecStart=env --chdir={paths.CHECKOUT} {VENV}/bin/python -m lab.vm.inside
StandardOutput=tty
TTYPath=/dev/ttyS1
StandardError=journal+console

[Install]
WantedBy=multi-user.target
"""


def build_root() -> Path:
    """Make the emulator and the root disk unless they are there. Returns their folder."""
    container_images.build(apps.IMAGES)
    packages = {suite: _kernel_of(suite) for suite in (own_codename(), _backports())}
    target = FOLDER / "root"
    made_from = fingerprint([_LAYOUT, repr(packages), repr(_PACKAGES), _UNIT, _ROOT_SIZE])
    if not is_made(target, made_from):
        with (
            timed("vm: the emulator and a Debian with two kernels"),
            making(target, made_from) as part,
        ):
            apt = PrivateApt(paths.DOWNLOADS / "vm", (own_codename(),))
            apt.update()
            unpack(apt.download([_EMULATOR]), part / "qemu")
            tree = part / "tree"
            _debian(tree, list(packages.values()))
            found = {"qemu": apt.versions(_EMULATOR)[0], **_versions(tree)}
            write_file(part / "versions.json", json.dumps(found, indent=2) + "\n")
            shutil.copytree(tree / "boot", part / "boot")
            run(["mke2fs", "-q", "-t", "ext4", "-d", tree, part / "root.ext4", _ROOT_SIZE])
            shutil.rmtree(tree)
    if not (VENV / "bin/python").exists():
        pins = (paths.CHECKOUT / "requirements-dev.txt").read_text().split()
        wheel.make_environment(VENV, *(pin for pin in pins if pin.partition("==")[0] in _CLIENT))
    return target


def kernels(root: Path) -> list[str]:
    """The releases, the oldest first."""
    found = [path.name.partition("-")[2] for path in (root / "boot").glob("vmlinuz-*")]
    return sorted(found, key=tools.upstream)


def versions(root: Path) -> dict[str, str]:
    """Of what the checks ran with."""
    found: dict[str, str] = json.loads((root / "versions.json").read_text())
    return {**found, **tools.versions(), **python.versions()}


def _backports() -> str:
    return f"{own_codename()}-backports"


def _kernel_of(suite: str) -> str:
    """The package of the kernel that this suite's newest one is."""
    apt = PrivateApt(paths.DOWNLOADS / f"vm-{suite}", (suite,))
    apt.update()
    return apt.depends(_KERNEL)[0]


def _debian(tree: Path, kernels: list[str]) -> None:
    include = ",".join((*_PACKAGES, *kernels))
    sources = [
        f"deb [signed-by={KEYRING}] {mirror()} {suite} main"
        for suite in (own_codename(), _backports())
    ]
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]
    run([*command, f"--include={include}", own_codename(), tree, *sources])
    write_file(tree / "etc/machine-id", "0" * 31 + "1\n")
    write_file(tree / "etc/hostname", "node\n")
    write_file(tree / "etc/hosts", "127.0.0.1 localhost node\n::1 localhost\n")
    unit = tree / "etc/systemd/system/zeropod-checks.service"
    write_file(unit, _UNIT)
    wants = unit.parent / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit.name).symlink_to(f"../{unit.name}")


def _versions(tree: Path) -> dict[str, str]:
    names = ("systemd",)
    shown = run(["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "--show", *names])
    return dict(line.split("\t") for line in shown.splitlines())


@contextmanager
def lab_disk() -> Iterator[Path]:
    """A disk with a copy of the node. One at a time: LabError names who has it."""
    lock = Lock.take(FOLDER / "lock", "vm-test")
    try:
        yield _make_lab_disk()
    finally:
        remove(FOLDER / _PART)
        (FOLDER / _DISK).unlink(missing_ok=True)
        lock.release()


def _make_lab_disk() -> Path:
    disk, tree = FOLDER / _DISK, FOLDER / _PART
    remove(tree)
    disk.unlink(missing_ok=True)
    inside = tree / paths.ROOT.relative_to(paths.CHECKOUT)
    (inside / "vm").mkdir(parents=True)
    for part in (paths.TOOLS, paths.PYTHON, paths.VENV, paths.IMAGES):
        _link(part, inside / part.name)
    _link(VENV, inside / "vm" / VENV.name)
    shutil.copytree(paths.SOURCES, tree / paths.SOURCES.name)
    size_mb = _size_mb(tree) + _SPARE_MB
    run(["mke2fs", "-q", "-t", "ext4", "-d", tree, disk, f"{size_mb}M"])
    return disk


def _link(source: Path, target: Path) -> None:
    """The same files by hard links."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


def _size_mb(tree: Path) -> int:
    shown = subprocess.run(["du", "-sm", tree], capture_output=True, text=True, check=True)
    return int(shown.stdout.split()[0])
