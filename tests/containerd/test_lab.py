"""The lab's own promises: one user at a time, and nothing is left of a node that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import paths, processes, waiting
from lab.node import Node

_VICTIM = """
import json, sys
from lab import cgroups
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Pod
node = Node.start("a victim")
pod = Pod(node, PodSpec("victim", "runc", cgroup_parent=node.cgroup_parent))
pod.add(ContainerSpec("nginx", "localhost/nginx:lab"))
pids = sorted(cgroups.processes())
print(json.dumps({"keeper": node.pid, "pids": pids, "group": str(cgroups.tracking())}), flush=True)
sys.stdin.read()
"""


@dataclass
class Victim:
    """A node of a lab of its own with a pod on it, and the process that started it."""

    owner: subprocess.Popen[str]
    environment: dict[str, str]
    keeper: int
    pids: list[int]
    group: Path

    def wait_gone(self) -> None:
        """Wait until none of its processes is alive and its cgroups are removed."""

        def gone() -> bool:
            return not any(map(processes.alive, self.pids)) and not self.group.exists()

        waiting.until("end of the node", gone)

    def lab(self, command: str) -> subprocess.CompletedProcess[str]:
        return _lab(command, self.environment)


def _lab(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", command],
        cwd=paths.CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def victim(node: Node, tmp_path: Path) -> Iterator[Victim]:
    """Shares tools and images with the session's lab, which ``node`` has built."""
    others = [folder.name for folder in paths.ROOT.glob("containerd-*")]
    for name in ("tools", "images", *others):
        (tmp_path / name).symlink_to(paths.ROOT / name)
    environment = {**os.environ, "ZEROPOD_LAB": str(tmp_path)}
    before = Path("/proc/self/mounts").read_text()
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM],
        cwd=paths.CHECKOUT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        said = json.loads(owner.stdout.readline())
        found = Victim(owner, environment, said["keeper"], said["pids"], Path(said["group"]))
        assert found.keeper in found.pids
        assert len(found.pids) >= 4  # keeper, containerd, shim, nginx
        yield found
        owner.kill()
    assert found.lab("down").returncode == 0
    found.wait_gone()
    assert Path("/proc/self/mounts").read_text() == before


def test_the_second_user_is_told_who_holds_it(node: Node) -> None:
    said = _lab("up", dict(os.environ))
    assert said.returncode == 1
    assert f"in use by process {node.pid} (pytest tests/containerd)" in said.stderr


def test_a_node_ends_with_the_process_that_started_it(victim: Victim) -> None:
    victim.owner.kill()
    victim.wait_gone()


def test_what_a_killed_keeper_left_is_found_and_removed(victim: Victim) -> None:
    os.kill(victim.keeper, signal.SIGKILL)
    waiting.until("keeper's end", lambda: not processes.alive(victim.keeper))
    left = [pid for pid in victim.pids if processes.alive(pid)]
    assert left, "nothing was left to be found"
    assert "not running" in victim.lab("status").stdout
    assert victim.lab("down").returncode == 0
    victim.wait_gone()
