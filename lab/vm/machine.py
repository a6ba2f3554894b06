"""One boot of the virtual machine: from the kernel to the power-off, within a time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

from lab.steps import say
from lab.vm.disks import FOLDER
from lab.vm.report import CHOICE, Report

_MEMORY_MB = 3072
_KERNEL_COMMAND_LINE = "root=/dev/vda rw console=ttyS0 panic=5 systemd.firstboot=off quiet"
_CPU = "max,-cx16"
"""QEMU 7.2 emulates cmpxchg16b wrongly with a segment: kernel 6.12 dies of it as it allocates."""
_PROCESSORS = "1"
"""With two, 6.12 has died of an invalid opcode where it had patched its own text."""


def run(root: Path, lab: Path, check: str, deadline: float, kernel: str) -> Report:
    """Boot, note what the checks report and say so line by line, wait for the end.

    ``check``: words of the names of those to do; "" for all. ``deadline``: of the monotonic clock.
    The machine's console is in ``console-<kernel>.log`` beside the disks.
    """
    report = Report(kernel)
    say(f"Linux {kernel} …")
    console = FOLDER / f"console-{kernel}.log"
    qemu = root / "qemu"
    libraries = [str(path) for path in qemu.glob("*lib/*-linux-gnu")]
    libraries += [str(path) for path in qemu.glob("usr/lib/*-linux-gnu")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    with subprocess.Popen(
        _command(root, kernel, lab, check, console),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(FOLDER / f"qemu-{kernel}.log").open("wb"),
        env=environment,
    ) as machine:
        assert machine.stdout is not None
        try:
            _follow(machine.stdout.fileno(), report, deadline)
        finally:
            machine.send_signal(signal.SIGKILL)
    if time.monotonic() > deadline:
        report.error = "not done in time"
    elif len(report.results) != report.count or not report.count:
        report.error = f"it ended before its checks: see {console}"
    return report


def _follow(pipe: int, report: Report, deadline: float) -> None:
    """Until the machine's end, or the deadline."""
    text = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            return
        if not (data := os.read(pipe, 65536)):
            return
        *lines, text = (text + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                say(f"Linux {report.kernel}: {report.take(line.decode(errors='replace'))}")


def _command(root: Path, kernel: str, lab: Path, check: str, console: Path) -> list[str]:
    share, boot = root / "qemu/usr/share", root / "boot"
    return [
        str(root / "qemu/usr/bin/qemu-system-x86_64"),
        *("-accel", "tcg,thread=multi", "-cpu", _CPU, "-smp", _PROCESSORS, "-m", str(_MEMORY_MB)),
        *("-nodefaults", "-no-reboot", "-display", "none", "-vga", "none"),
        *("-L", f"{share}/qemu", "-L", f"{share}/seabios"),
        *("-kernel", f"{boot}/vmlinuz-{kernel}", "-initrd", f"{boot}/initrd.img-{kernel}"),
        *("-append", f"{_KERNEL_COMMAND_LINE} {CHOICE}{check}"),
        *("-drive", f"file={root}/root.ext4,format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={lab},format=raw,if=virtio,snapshot=on"),
        *("-serial", f"file:{console}", "-serial", "stdio", "-device", "virtio-rng-pci"),
    ]
