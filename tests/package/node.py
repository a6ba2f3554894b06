"""Launchers, zygotes and shims in a mount namespace of their own; the test plays containerd."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.package.installation import LAUNCHER

_CLONE_NEWNS: Final = 0x20000
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass
class Node:
    """A mount namespace with a /run of its own; this process plays containerd in it."""

    bin: Path
    bundles: Path
    holder: int
    environ: dict[str, str] = field(default_factory=dict)

    def bundle(self, id: str, **annotations: str) -> Path:
        folder = self.bundles / id
        folder.mkdir(exist_ok=True)
        given = {key.replace("__", "."): value for key, value in annotations.items()}
        (folder / "config.json").write_text(json.dumps({"annotations": given}))
        with contextlib.suppress(FileExistsError):
            os.mkfifo(folder / "log", 0o700)
        return folder

    def launch(
        self, action: str, id: str, stdin: bytes = b"", **environ: str
    ) -> subprocess.Popen[bytes]:
        """Execute the launcher as containerd does."""
        bundle = self.bundle(id) if not (self.bundles / id).exists() else self.bundles / id
        namespace = os.open(f"/proc/{self.holder}/ns/mnt", os.O_RDONLY)

        def enter() -> None:
            if _libc.setns(namespace, _CLONE_NEWNS):
                os._exit(126)
            os.chdir(bundle)

        argv = [str(self.bin / LAUNCHER), "-namespace", "test", "-address", "/run/c.sock"]
        given = os.memfd_create("stdin", os.MFD_CLOEXEC)
        os.write(given, stdin)
        os.lseek(given, 0, os.SEEK_SET)
        try:
            return subprocess.Popen(
                [*argv, "-publish-binary", "/bin/true", "-id", id, action],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": os.environ["PATH"], **self.environ, **environ},
                preexec_fn=enter,
            )
        finally:
            os.close(namespace)
            os.close(given)

    def call(self, action: str, id: str, stdin: bytes = b"", **environ: str) -> bytes:
        """Its output. Fails with what it said."""
        process = self.launch(action, id, stdin, **environ)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        return out

    def start(self, id: str, **environ: str) -> Path:
        """Start a shim; the path of its socket, as seen from outside."""
        address = self.call("start", id, **environ).decode()
        return self.path(address.removeprefix("unix://"))

    def path(self, inside: str) -> Path:
        """A path of the namespace, from outside."""
        return Path(f"/proc/{self.holder}/root{inside}")

    def processes(self) -> dict[int, list[str]]:
        """pid → command line of everything in the namespace but its holder."""
        own = Path(f"/proc/{self.holder}/ns/mnt").readlink()
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != self.holder:
                with contextlib.suppress(OSError):
                    if (folder / "ns/mnt").readlink() == own:
                        line = (folder / "cmdline").read_bytes().rstrip(b"\0 ")
                        found[int(folder.name)] = line.decode().split("\0")
        return {pid: argv for pid, argv in found.items() if argv != [""]}

    def shims(self) -> dict[int, str]:
        """pid → id of the shims that serve or are about to."""
        return {
            pid: argv[argv.index("-id") + 1]
            for pid, argv in self.processes().items()
            if argv[0] == LAUNCHER and "-id" in argv
        }

    def zygotes(self) -> list[int]:
        return [pid for pid, argv in self.processes().items() if argv[0] == "zeropod-zygote"]

    def kill(self, *pids: int) -> None:
        """SIGKILL, and wait for the end."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                assert select.select([descriptor], [], [], 60)[0], f"{pid} does not end"
                os.close(descriptor)


@contextlib.contextmanager
def node(bin: Path, folder: Path) -> Iterator[Node]:
    holder = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /run && echo && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin
    assert holder.stdout
    holder.stdout.readline()
    folder.mkdir(exist_ok=True)
    made = Node(bin, folder, holder.pid)
    try:
        yield made
    finally:
        while found := made.processes():
            made.kill(*found)
        holder.stdin.close()
        holder.stdout.close()
        holder.wait(60)
