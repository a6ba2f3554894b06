"""Containers without CRI: `ctr run`, its loggers, and checkpoints that become other containers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import cgroups, processes, waiting
from lab.container_images import STATEFUL
from lab.node import Node
from lab.steps import LabError

_RUNTIMES = {"runc": "io.containerd.runc.v2", "zeropod": "io.containerd.zeropod.v2"}
_BOTH = pytest.mark.parametrize("handler", list(_RUNTIMES))
_ASK = (
    "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8080/').read().decode())"
)
_numbers = itertools.count(1)


@dataclass
class Ctr:
    """A container that `ctr` runs."""

    node: Node
    id: str

    def __call__(self, *argv: str) -> str:
        return self.node.run(["ctr", "--namespace=k8s.io", *argv])

    @property
    def cgroup(self) -> str:
        return f"/{cgroups.NAME}/{self.id}"

    def run(self, handler: str, *options: str, argv: tuple[str, ...] = ()) -> None:
        where = ("--runtime", _RUNTIMES[handler], "--cgroup", self.cgroup)
        self("run", "--detach", *where, *options, STATEFUL.reference, self.id, *argv)

    def exec(self, *argv: str) -> str:
        return self("tasks", "exec", f"--exec-id=e{next(_numbers)}", self.id, *argv)

    def ask(self) -> tuple[str, int]:
        """(boot id, count)."""

        def answer() -> dict[str, object] | None:
            try:
                found = json.loads(self.exec("/usr/bin/python3", "-c", _ASK))
            except LabError as error:
                if "Connection refused" in str(error):
                    return None
                raise
            assert isinstance(found, dict)
            return found

        found = waiting.until(f"an answer of {self.id}", answer)
        return str(found["boot_id"]), int(str(found["count"]))

    def listed(self) -> str:
        """What containerd says of its task: RUNNING, STOPPED; "" where there is none."""
        for line in self("tasks", "ls").splitlines():
            if line.split()[0] == self.id:
                return line.split()[2]
        return ""

    def wait_for(self, status: str) -> None:
        waiting.until(f"{status} of {self.id}", lambda: self.listed() == status)

    def live_pids(self) -> list[int]:
        try:
            procs = (
                cgroups.tracking().parent / self.cgroup.lstrip("/") / "cgroup.procs"
            ).read_text()
        except OSError:
            return []
        return [pid for pid in map(int, procs.split()) if processes.alive(pid)]

    def wait_asleep(self) -> None:
        waiting.until(f"sleep of {self.id}", lambda: not self.live_pids())
        assert self.listed() == "RUNNING"

    def remove(self) -> None:
        """Whatever there is of it."""
        if self.listed():
            self("tasks", "rm", "--force", self.id)
        if self.id in self("containers", "ls", "--quiet").split():
            self("containers", "rm", self.id)


@pytest.fixture
def ctr(no_leaks: None, node: Node) -> Iterator[Ctr]:
    made = Ctr(node, f"ctr-{next(_numbers)}")
    yield made
    made.remove()


@_BOTH
def test_a_file_logger(ctr: Ctr, handler: str, tmp_path: Path) -> None:
    log = tmp_path / "made" / "log"
    script = "echo out; echo err >&2"
    if handler == "runc":  # containerd's own shim may lose the last lines of what ends
        script += "; sleep 1000"
    ctr.run(handler, "--log-uri", f"file://{log}", argv=("/bin/sh", "-c", script))
    if handler != "runc":
        ctr.wait_for("STOPPED")
    waiting.until("both lines", lambda: sorted(log.read_text().splitlines()) == ["err", "out"])


@_BOTH
def test_a_program_as_logger(ctr: Ctr, handler: str, tmp_path: Path) -> None:
    program = tmp_path / "logger"
    program.write_text(
        f"#!/bin/sh\necho $CONTAINER_NAMESPACE $CONTAINER_ID $* > {tmp_path}/seen\n"
        f"exec 5>&-\ncat <&3 > {tmp_path}/out\n"
    )
    program.chmod(0o755)
    uri = f"binary://{program}?a=b"
    ctr.run(handler, "--log-uri", uri, argv=("/bin/sh", "-c", "echo out"))
    out = tmp_path / "out"
    waiting.until("the line", lambda: out.exists() and out.read_text() == "out\n")
    assert (tmp_path / "seen").read_text() == f"k8s.io {ctr.id} a b\n"


def test_it_sleeps_where_its_annotations_say_so(ctr: Ctr, tmp_path: Path) -> None:
    """And what it writes goes to the same logger afterwards."""
    log = tmp_path / "log"
    annotation = "zeropod.ctrox.dev/scaledown-duration=1s"
    ctr.run("zeropod", "--annotation", annotation, "--log-uri", f"file://{log}")
    boot, count = ctr.ask()
    ctr.wait_asleep()
    assert ctr.ask() == (boot, count + 1)
    ctr.wait_asleep()
    assert ctr.ask() == (boot, count + 2)
    lines = [line for line in log.read_text().splitlines() if line.startswith("request ")]
    assert [int(line.split()[1]) for line in lines] == list(range(1, count + 3))


def test_a_checkpoint_becomes_another_container(ctr: Ctr, node: Node) -> None:
    """With the memory of the one that it was taken of, and it sleeps like any other."""
    ctr.run("zeropod", "--annotation", "zeropod.ctrox.dev/scaledown-duration=1s")
    boot, count = ctr.ask()
    image = f"localhost/checkpoint-{ctr.id}:lab"
    ctr("containers", "checkpoint", "--image", "--task", "--rw", ctr.id, image)
    try:
        ctr.remove()
        other = Ctr(node, f"{ctr.id}-again")
        try:
            ctr("containers", "restore", "--rw", "--live", other.id, image)
            assert other.listed() == "RUNNING"
            assert other.ask() == (boot, count + 1)
            other.wait_asleep()
            assert other.ask() == (boot, count + 2)
        finally:
            other.remove()
    finally:
        ctr("images", "rm", image)
