"""Churn on a node of its own: pods that come, sleep, wake, are executed in, stopped and removed,
while processes are killed at random; then everything is counted.

    python -m lab.soak --minutes 30          # make soak
    … --seed 7                               # the same dice again (not the same race)

Each pod runs the app whose memory is an oracle: every answer must have the boot id of its start
and the next number. A pod that somebody was killed under is excused for a while: its app may have
lost its memory, if it says so by a new boot id, or have ended. Nothing else is. In the end nothing
may be left, and there must have been no failure.

containerd is not killed while a sandbox is being made or removed: what it has made until then, and
what it has not removed yet, it forgets, whichever shim it runs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from lab import cgroups, leaks, node, processes
from lab.container_images import NGINX, STATEFUL
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Container, Pod
from lab.proto import cri_pb2 as pb
from lab.steps import LabError, say

_IDLE = ("1s", "2s", "3s")
"""Not shorter: an app that this busy machine keeps from answering for so long counts as idle."""
_EXCUSED_S = 20.0
_PAUSE_S = (0.5, 3.0)
_SETTLE_S = 30.0
_AWAY_S = 0.3  # between two questions to a containerd that is away


@dataclass
class Score:
    """What was done, what was done to it, and what went wrong."""

    operations: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and not self.left

    def lines(self) -> list[str]:
        def counted(what: str, found: Counter[str]) -> str:
            parts = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
            return f"{what} {found.total()} ({parts})" if found else f"{what} 0"

        return [
            counted("operations", self.operations),
            counted("faults injected", self.faults),
            counted("excused", self.excused),
            f"failures {len(self.failures)}",
            *(f"  {text}" for text in self.failures[:50]),
            f"leaks {len(self.left)}",
            *(f"  {text}" for text in self.left[:50]),
        ]


class Broken(Exception):
    """The pod is not what it should be."""


_TROUBLE = (Broken, OSError, grpc.RpcError, LabError, ValueError)
"""ValueError: the connection to CRI is closed, because containerd is being started again."""


class _Shared:
    """Held by many at a time, or by one who is `alone`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._many = 0

    def __enter__(self) -> None:
        with self._changed:
            self._many += 1

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._many -= 1
            self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:  # kept meanwhile: nobody comes in
            self._changed.wait_for(lambda: self._many == 0)
            yield


class Churn:
    """One pod after another. ``touched``: when somebody was killed under the present one."""

    def __init__(self, soak: Soak, number: int, seed: int) -> None:
        self._soak = soak
        self._number = number
        self._dice = random.Random(seed)
        self._generation = 0
        self.pod: Pod | None = None
        self.app: Container | None = None
        self._boot = ""
        self._count = 0
        self.touched = 0.0

    def run(self) -> None:
        """Until the soak is over; then the pod is removed."""
        while not self._soak.over.is_set():
            what, began = "create", time.monotonic()
            try:
                if self.pod is None:
                    self._create()
                else:
                    what, operation = self._draw()
                    operation()
                self._soak.score.operations[what] += 1
            except _TROUBLE as error:
                self._failed(what, error, began)
        self._remove()

    def _draw(self) -> tuple[str, Callable[[], None]]:
        operations: dict[str, Callable[[], None]] = {
            "request": self._request,
            "sleep and request": self._sleep,
            "exec": self._exec,
            "stop": self._stop,
            "remove": self._remove,
        }
        (name,) = self._dice.choices([*operations], [10, 10, 4, 1, 1])
        return name, operations[name]

    def _failed(self, what: str, error: Exception, began: float) -> None:
        app = self.app.id[:12] if self.app else ""
        said = f"pod {self._number} {app}: {what}: {type(error).__name__}: {_text(error)}"
        calls_cri = what in ("create", "exec", "stop", "remove")
        if began - self.touched < _EXCUSED_S:
            self._soak.score.excused[what] += 1
        elif calls_cri and self._soak.containerd_was_away(began):
            self._soak.score.excused[f"{what}, no containerd"] += 1
            self._soak.over.wait(_AWAY_S)
        else:
            self._soak.score.failures.append(said)
            say(f"soak: {said}")
        self._remove()

    def _create(self) -> None:
        self._generation += 1
        annotations = {"zeropod.ctrox.dev/scaledown-duration": self._dice.choice(_IDLE)}
        name = f"soak-{self._number}-{self._generation}"
        group = self._soak.node.cgroup_parent
        spec = PodSpec(name, annotations=annotations, cgroup_parent=group)
        with self._soak.making:
            self.pod = Pod(self._soak.node, spec)
        self.app = self.pod.add(ContainerSpec("stateful", STATEFUL.reference))
        self.pod.wait_for_port(8080)
        self._boot, self._count = "", 0
        self._request()

    def _request(self) -> None:
        assert self.pod
        found = self.pod.get()
        boot, count = str(found["boot_id"]), int(str(found["count"]))
        expected = (self._boot or boot, self._count + 1)
        self._boot, self._count = boot, count
        if (boot, count) != expected:
            raise Broken(f"boot id and count are {(boot, count)}, expected {expected}")

    def _sleep(self) -> None:
        assert self.app
        self.app.wait_asleep(timeout=60)
        self._request()

    def _exec(self) -> None:
        assert self.app
        word = f"{self._dice.random()}"
        found = self.app.exec("echo", word)
        if (found.exit_code, found.stdout) != (0, f"{word}\n".encode()):
            raise Broken(f"exec gave {found}")

    def _stop(self) -> None:
        """By SIGTERM, which the app does not handle as the first of its namespace: SIGKILL."""
        assert self.app
        self.app.stop(0)
        if (status := self.app.status()).state != pb.CONTAINER_EXITED:
            raise Broken(f"stopped, but its state is {status.state}")
        self._remove()

    def _remove(self) -> None:
        """However often it takes; a containerd that is away comes back."""
        began = time.monotonic()
        while (pod := self.pod) is not None:
            try:
                with self._soak.making:
                    pod.remove()
                self.pod = self.app = None
            except _TROUBLE as error:
                if self._soak.containerd_was_away(began) and time.monotonic() - began < 120:
                    continue
                text = f"pod {self._number} {pod.id[:12]}: is not removed: {_text(error)}"
                self._soak.score.failures.append(text)
                say(f"soak: {text}")
                self.pod = self.app = None
        self.touched = 0.0


class Soak:
    """``over`` ends the churn; faults come from the thread that calls `run`."""

    def __init__(self, node: Node, seed: int) -> None:
        self.node = node
        self.score = Score()
        self.over = threading.Event()
        self.making = _Shared()
        self._dice = random.Random(seed)
        self._back = 0.0

    def containerd_was_away(self, began: float) -> bool:
        """Since that moment or shortly before, or is."""
        return began - self._back < _EXCUSED_S

    def run(self, pods: int, seconds: float) -> None:
        churns = [Churn(self, number, self._dice.randrange(2**32)) for number in range(pods)]
        threads = [threading.Thread(target=churn.run, name="churn") for churn in churns]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        spoken = time.monotonic()
        try:
            while time.monotonic() < end and all(thread.is_alive() for thread in threads):
                self.over.wait(self._dice.uniform(*_PAUSE_S))
                self._hurt(churns)
                if time.monotonic() - spoken > 60:
                    spoken = time.monotonic()
                    done, hurt = self.score.operations.total(), self.score.faults.total()
                    failed = len(self.score.failures)
                    say(
                        f"soak: {(end - spoken) / 60:.0f} minutes to go: {done} operations, "
                        f"{hurt} faults, {failed} failures"
                    )
        finally:
            self.over.set()
            dead = [thread for thread in threads if not thread.is_alive()]
            self.score.failures += ["a churn broke off: see above" for _ in dead]
            for thread in threads:
                thread.join()

    def _hurt(self, churns: list[Churn]) -> None:
        kinds: dict[str, Callable[[list[Churn]], bool]] = {
            "runc or criu": self._kill_worker,
            "shim": self._kill_shim,
            "zygote": self._kill_zygote,
            "containerd": self._kill_containerd,
        }
        (kind,) = self._dice.choices([*kinds], [12, 3, 2, 1])
        with suppress(OSError, ValueError, LabError):  # it has just ended by itself
            if kinds[kind](churns):
                self.score.faults[kind] += 1

    def _kill_worker(self, churns: list[Churn]) -> bool:
        """A runtime or CRIU that is at work, which the next second should bring."""
        by_id = {churn.app.id: churn for churn in churns if churn.app}
        end = time.monotonic() + 1
        while time.monotonic() < end:
            for pid in cgroups.processes():
                churn = next((by_id[word] for word in _words(pid) if word in by_id), None)
                if churn is not None and _kill(pid, churn):
                    return True
        return False

    def _kill_shim(self, churns: list[Churn]) -> bool:
        churn = self._dice.choice(churns)
        return churn.pod is not None and _kill(churn.pod.shim_pid(), churn)

    def _kill_zygote(self, _churns: list[Churn]) -> bool:
        """Starts that are under way go on."""
        for pid in cgroups.processes():
            if _title(pid)[:1] == ["zeropod-zygote"]:
                return _kill(pid, None)
        return False

    def _kill_containerd(self, _churns: list[Churn]) -> bool:
        """The network does not notice; who asks CRI does."""
        with self.making.alone():
            self._back = float("inf")
            try:
                self.node.kill_containerd()
                self.node.start_containerd()
            finally:
                self._back = time.monotonic()
        return True


def _title(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0 ").split("\0")
    except OSError:
        return []


def _words(pid: int) -> list[str]:
    """The arguments of a runc, or of the one that runs this criu; empty for everybody else."""
    words = _title(pid)
    name = Path(words[0]).name if words else ""
    if name == "criu":
        stat = Path(f"/proc/{pid}/stat")
        with suppress(OSError):
            return _words(int(stat.read_text().rpartition(")")[2].split()[1]))
    return words if name == "runc" and "init" not in words else []


def _kill(pid: int, churn: Churn | None) -> bool:
    """Note it first: what follows from it may be seen at once."""
    if churn is not None:
        churn.touched = time.monotonic()
    if not processes.alive(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def _text(error: Exception) -> str:
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code()}: {error.details()}"
    return str(error) or "nothing more"


def soak(pods: int, seconds: float, seed: int) -> Score:
    """Build what is needed, run it, count."""
    node.build()
    with Node.start("lab.soak") as running:
        annotations = {"zeropod.ctrox.dev/scaledown-duration": "100ms"}
        group = running.cgroup_parent
        first = Pod(running, PodSpec("first", annotations=annotations, cgroup_parent=group))
        first.add(ContainerSpec("nginx", NGINX.reference)).wait_asleep()
        first.remove()
        before = leaks.snapshot(running)
        this = Soak(running, seed)
        say(f"soak: {pods} pods, {seconds / 60:g} minutes, seed {seed}")
        this.run(pods, seconds)
        _collect_garbage(running)
        this.score.left = leaks.settled(running, before, _SETTLE_S)
        return this.score


def _collect_garbage(running: Node) -> None:
    """Sandboxes that nobody has got an answer for, and empty cgroups of pods: the kubelet's work.

    A cgroup of a pod that is not empty stays, and is counted.
    """
    for sandbox in running.cri.pods():
        running.cri.stop_pod(sandbox.id)
        running.cri.remove_pod(sandbox.id)
    for hierarchy in cgroups.hierarchies():
        for folder in (hierarchy / cgroups.NAME / "kubepods").glob("pod*"):
            with suppress(OSError):
                folder.rmdir()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. 0 when nothing failed and nothing was left."""
    parser = argparse.ArgumentParser(prog="python -m lab.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=30.0, help="how long [30]")
    parser.add_argument("--pods", type=int, default=20, help="how many at a time [20]")
    parser.add_argument("--seed", type=int, default=None, help="of the dice [drawn, and printed]")
    given = parser.parse_args(argv)
    seed = random.randrange(2**32) if given.seed is None else given.seed
    try:
        score = soak(given.pods, given.minutes * 60, seed)
    except LabError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print("\n".join(score.lines()))
    return 0 if score.ok else 1


if __name__ == "__main__":
    sys.exit(main())
