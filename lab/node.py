"""The running node, seen from outside: start it, reach into it, end it.

``Node.start()`` begins a node that ends with this process; ``Node.attach()`` finds one that was
left running. Sockets made through it live in the node's network namespace, so that pods answer
them as they answer the kubelet; paths are those of the node's mount namespace.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from lab import (
    cgroups,
    config,
    container_images,
    keeper,
    kernel,
    other_containerd,
    paths,
    python,
    tools,
    wheel,
)
from lab.cri import Cri
from lab.lock import Lock, holder
from lab.steps import LabError, remove, timed

_START_TIMEOUT_S = 90


def build() -> None:
    """Make everything that a node needs and that is not there. One at a time."""
    if os.geteuid():
        raise LabError("the lab needs root: it makes namespaces and runs containers")
    lock = Lock.take(paths.ROOT / "build.lock", "build")
    try:
        tools.build()
        other_containerd.build()
        python.build()
        container_images.build()
        wheel.build()
    finally:
        lock.release()


class Node:
    """A node that runs. Use ``start`` or ``attach``; as a context manager it stops at the end."""

    def __init__(self, pid: int, owner: socket.socket | None) -> None:
        self.pid = pid
        """The keeper: its /proc entry has the node's namespaces."""
        self._owner = owner
        self.cri = Cri(self.path(config.CONTAINERD_SOCKET))

    @classmethod
    def start(cls, command: str) -> Node:
        """Start a node for ``command`` (shown to whoever comes second)."""
        lock = Lock.take(paths.LOCK, command)
        try:
            with timed("node: namespaces, containerd, images"):
                return cls._start(lock, command)
        finally:
            lock.release()

    @classmethod
    def _start(cls, lock: Lock, command: str) -> Node:
        keeper.sweep()
        remove(paths.NODE)
        paths.NODE.mkdir(parents=True)
        config.write()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, (paths.NODE / "keeper.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lab.keeper", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), lock.fileno()],
                cwd=paths.CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        lock.write(process.pid, command)
        node = cls(process.pid, ours)
        node._receive()
        return node

    @classmethod
    def attach(cls) -> Node:
        """The node that is running. Raises LabError where there is none."""
        if holder(paths.LOCK) is None or not keeper.RECORD.exists():
            raise LabError("no node is running: `python -m lab up` starts one that stays")
        return cls(int(json.loads(keeper.RECORD.read_text())["keeper"]), None)

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the node and everything in it; returns when all is gone."""
        self.cri.close()
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if not select.select([pidfd], [], [], _START_TIMEOUT_S)[0]:
                raise LabError(f"the node's keeper {self.pid} does not end: see {paths.NODE}")
        finally:
            os.close(pidfd)
            if self._owner:
                self._owner.close()
                os.waitpid(self.pid, 0)
        if cgroups.v2_only():
            cgroups.remove()  # the keeper did not see all of them

    def keep(self) -> None:
        """Let the node go on when this process ends."""
        self._ask("keep")

    # containerd

    @property
    def containerd_pid(self) -> int:
        return int(json.loads(keeper.RECORD.read_text())["containerd"])

    def kill_containerd(self) -> None:
        """SIGKILL to containerd alone; returns when it is dead."""
        pidfd = os.pidfd_open(self.containerd_pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [])
        finally:
            os.close(pidfd)

    def start_containerd(self) -> None:
        """Start containerd after it was killed; returns when CRI answers again."""
        self._ask("start-containerd")
        self.cri.close()
        self.cri = Cri(self.path(config.CONTAINERD_SOCKET))
        self.cri.version()

    def _ask(self, what: str) -> None:
        if self._owner is None:
            raise LabError(f"only the owner of the node can ask it to {what}")
        self._owner.send(json.dumps({"do": what}).encode())
        self._receive()

    def _receive(self) -> None:
        assert self._owner is not None
        self._owner.settimeout(_START_TIMEOUT_S)
        packet = self._owner.recv(4096)
        reply = json.loads(packet) if packet else {"error": f"see {paths.NODE}/keeper.log"}
        if "error" in reply:
            raise LabError(f"node: {reply['error']}")

    @property
    def containerd_log(self) -> Path:
        """What containerd says, and every shim through it."""
        return paths.NODE / "containerd.log"

    # reaching in

    def path(self, inside: str | Path) -> Path:
        """A path of the node's mount namespace, as this process reaches it."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def tcp_socket(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A TCP socket in the node's network namespace."""
        with kernel.network_namespace(Path(f"/proc/{self.pid}/ns/net")):
            return socket.socket(family, socket.SOCK_STREAM)

    def connect(self, address: str, port: int, timeout: float = 120) -> socket.socket:
        """Connect from the node to an IPv4 or IPv6 address."""
        made = self.tcp_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            made.settimeout(timeout)
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The argv that runs ``argv`` on the node."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--"]
        return [*enter, *map(str, argv)]

    def run(self, argv: Sequence[str | Path], timeout: float = 240) -> str:
        """Run a command on the node and return its stdout; LabError when it fails."""
        done = subprocess.run(
            self.command(argv),
            env=keeper.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise LabError(f"{shlex.join(map(str, argv))}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def shell(self) -> int:
        """An interactive shell on the node, in the current directory."""
        env = {**keeper.environment(), "PS1": "node:\\w# "}
        shell = shutil.which("bash") or "/bin/sh"
        argv = [*self.command([shell])[:-1], f"--wd={Path.cwd()}", shell]
        argv.remove("--")
        return subprocess.run(argv, env=env, check=False).returncode

    @property
    def cgroup_parent(self) -> str:
        """Where pods go: below the node's cgroup, so that nothing of theirs is ever lost."""
        return f"/{cgroups.NAME}"


def stop_running() -> bool:
    """End the node that is running, or what a crashed one left. Returns whether there was one."""
    if holder(paths.LOCK) is not None:
        Node.attach().stop()
        return True
    left = bool(cgroups.processes())
    keeper.sweep()
    return left
