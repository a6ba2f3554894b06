"""The process that is the node: it owns the namespaces, containerd, and the end of everything.

It is started by lab.node with three inherited descriptors: the lock, a socket to its owner, and a
log. It makes the namespaces, starts containerd (which says READY=1 on $NOTIFY_SOCKET), loads the
images, and then answers requests until its owner closes the socket (also by dying) or SIGTERM
comes; ``keep`` makes it independent of the owner. As sub-reaper it inherits what is orphaned in the
node, like the init of a real one, and at the end it kills everything in the node's cgroups: the
namespaces and all mounts, bridges and BPF programs in them go with the last process.

Requests and replies are one JSON object per packet: {"do": "start-containerd" | "keep"} →
{"containerd": pid} | {"error": text}.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lab import cgroups, config, kernel, other_containerd, paths
from lab.container_images import IMAGES
from lab.steps import LabError, remove, run, write_file

_START_TIMEOUT_MS = 30_000
_NOTIFY = "/run/lab-notify"
_BOUND = {"zeropod": "/var/lib/zeropod", "pods": "/var/log/pods", "cni": "/var/lib/cni"}
RECORD = paths.NODE / "node.json"


def environment() -> dict[str, str]:
    """What containerd and commands on the node run with."""
    kept = {key: os.environ[key] for key in ("TERM", "LANG") if key in os.environ}
    return {"PATH": config.SEARCH_PATH, "HOME": "/root", "CONTAINERD_NAMESPACE": "k8s.io", **kept}


class Keeper:
    def __init__(self, owner: socket.socket) -> None:
        self._owner: socket.socket | None = owner
        self._containerd = 0
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def serve(self) -> None:
        """Start the node, say so, answer the owner; returns when the node is to end."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(signo, lambda *_: None)
        try:
            self._make_namespaces()
            self._start_containerd()
            self._load_images()
            self._reply({"containerd": self._containerd})
        except (LabError, OSError) as error:
            self._reply({"error": str(error)})
            return
        while True:
            waiting: list[int | socket.socket] = [wake_read]
            if self._owner:
                waiting.append(self._owner)
            ready, _, _ = select.select(waiting, [], [])
            if wake_read in ready:
                signals = os.read(wake_read, 512)
                self._reap()
                if {signal.SIGTERM, signal.SIGINT} & set(signals):
                    return
            if self._owner in ready and not self._answer():
                return

    def _make_namespaces(self) -> None:
        cgroups.enter()
        kernel.become_subreaper()
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET)
        run(["mount", "--make-rprivate", "/"])
        for path in ("/run", "/var"):
            run(["mount", "-t", "tmpfs", "-o", "mode=755", "lab", path])
        Path("/var/run").symlink_to("/run")
        Path("/var/tmp").mkdir(mode=0o1777)
        for name, inside in _BOUND.items():
            (paths.STATE / name).mkdir(parents=True, exist_ok=True)
            Path(inside).mkdir(parents=True)
            run(["mount", "--bind", paths.STATE / name, inside])
        if cgroups.v2_only():
            cgroups.show_v2_only()
        run(["ip", "link", "set", "lo", "up"])
        settings = Path("/proc/sys/net")
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            (settings / name).write_text("1")
        # The bridge's address is usable at once, without a second of duplicate detection.
        for name in ("all", "default"):
            (settings / f"ipv6/conf/{name}/accept_dad").write_text("0")
        self._notify.bind(_NOTIFY)

    def _start_containerd(self) -> None:
        """Start containerd and wait until it says that it serves."""
        with (paths.NODE / "containerd.log").open("ab") as log:
            process = subprocess.Popen(
                [other_containerd.programs() / "containerd", "--config", config.CONTAINERD_CONFIG],
                env={**environment(), "NOTIFY_SOCKET": _NOTIFY},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._containerd = process.pid
        pidfd = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(self._notify, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            while ready := dict(poll.poll(_START_TIMEOUT_MS)):
                if pidfd in ready:
                    break
                if b"READY=1" in self._notify.recv(4096):
                    self._record()
                    return
        finally:
            os.close(pidfd)
        raise LabError(f"containerd did not start: see {paths.NODE}/containerd.log")

    def _record(self) -> None:
        record = {"keeper": os.getpid(), "containerd": self._containerd}
        write_file(RECORD, json.dumps(record) + "\n")

    def _load_images(self) -> None:
        ctr: list[str | Path] = [
            other_containerd.programs() / "ctr",
            "--namespace",
            "k8s.io",
            "images",
            "import",
        ]
        for image in IMAGES:
            run([*ctr, image.archive], env=environment())

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                if pid == self._containerd:
                    self._containerd = 0

    def _answer(self) -> bool:
        """Answer one request of the owner. Returns whether the node goes on."""
        assert self._owner is not None
        packet = self._owner.recv(4096)
        if not packet:
            return False
        request = json.loads(packet)
        try:
            if request["do"] == "start-containerd":
                self._reap()
                if self._containerd:
                    raise LabError(f"containerd is running as {self._containerd}")
                self._start_containerd()
                self._reply({"containerd": self._containerd})
            elif request["do"] == "keep":
                self._reply({"containerd": self._containerd})
                self._owner.close()
                self._owner = None
        except LabError as error:
            self._reply({"error": str(error)})
        return True

    def _reply(self, reply: Mapping[str, object]) -> None:
        if self._owner:
            with suppress(BrokenPipeError):
                self._owner.send(json.dumps(reply).encode())


def sweep() -> None:
    """Kill what is in the node's cgroups, wait for it, and remove the cgroups and the record."""
    own = os.getpid()
    while left := cgroups.processes() - {own}:
        for pid in left:
            with suppress(ProcessLookupError):
                _kill_and_wait(pid)
    if own in cgroups.processes():
        for hierarchy in cgroups.hierarchies():
            with suppress(OSError):
                (hierarchy / "cgroup.procs").write_text(str(own))
    cgroups.remove()
    RECORD.unlink(missing_ok=True)
    for name in ("containerd", "zeropod", "pods", "cni", "opt"):
        remove(paths.STATE / name)


def _kill_and_wait(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
    finally:
        os.close(pidfd)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def main() -> None:
    keeper = Keeper(socket.socket(fileno=int(sys.argv[1])))
    try:
        keeper.serve()
    finally:
        sweep()


if __name__ == "__main__":
    main()
