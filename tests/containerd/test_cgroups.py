"""What a container may use, and what it has used, over sleeps: in whichever cgroups the node has.

Run with v1 controllers (`make containerd`) and with cgroup2 alone (`make containerd-v2`).
"""

from __future__ import annotations

import json

import pytest

from lab import cgroups
from lab.pods import Container, Pod
from lab.proto import cri_pb2 as pb

from .conftest import MakePod
from .test_sleep import LONG, keeps

_BLOCK_DEVICE = "mknod /tmp/disk b 7 0 && cat /tmp/disk"
_NULL_DEVICE = "mknod /tmp/nothing c 1 3 && cat /tmp/nothing"
_BURN = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done"


def _metrics(app: Container) -> dict[str, object]:
    """What containerd is told of the container's usage, as it prints that."""
    argv = ["ctr", "--namespace=k8s.io", "tasks", "metrics", "--format=json", app.id]
    found = json.loads(app.pod.node.run(argv))
    assert isinstance(found, dict)
    return found


def _cpu_ns(app: Container) -> int:
    """The CPU time of a container, in the form of its node's cgroups."""
    found = _metrics(app)
    cpu = found["cpu"]
    assert isinstance(cpu, dict)
    if cgroups.v2_only():
        return int(cpu["usage_usec"]) * 1000
    return int(cpu["usage"]["total"])


def _forbidden(pod: Pod) -> None:
    """The container's device rules hold: the node's disks are out of reach, /dev/null is not."""
    (app,) = pod.containers
    refused = app.exec("sh", "-c", _BLOCK_DEVICE)
    assert refused.exit_code and b"Operation not permitted" in refused.stderr, refused
    allowed = app.exec("sh", "-c", _NULL_DEVICE)
    assert allowed.exit_code == 0, allowed
    app.exec("rm", "-f", "/tmp/disk", "/tmp/nothing")


def test_devices_stay_out_of_reach(no_leaks: None, make_pod: MakePod) -> None:
    """A v1 controller's rules, or a BPF program of the cgroup: both end with the cgroup."""
    pod = make_pod("stateful", LONG)
    (app,) = pod.containers
    before = pod.get()
    for _ in range(2):
        _forbidden(pod)
        app.wait_asleep()
        after = pod.get()
        assert keeps(before, after)
        before = after
    _forbidden(pod)
    pod.remove()


def test_cpu_time_never_goes_backwards(no_leaks: None, make_pod: MakePod) -> None:
    """Told in the form of the node's cgroups; asleep it stands still, awake it goes on."""
    pod = make_pod("stateful", LONG)
    (app,) = pod.containers
    used = [_cpu_ns(app)]
    assert used[0] > 0
    before = pod.get()
    for _ in range(3):
        assert app.exec("sh", "-c", _BURN).exit_code == 0
        used.append(_cpu_ns(app))
        assert used[-1] - used[-2] > 50_000_000  # what the loop takes at the very least
        app.wait_asleep()
        used += [_cpu_ns(app), _cpu_ns(app)]
        assert used[-1] == used[-2]
        after = pod.get()
        assert keeps(before, after)
        before = after
        used.append(_cpu_ns(app))
        assert used == sorted(used), used
    pod.remove()


@pytest.mark.limits
def test_every_limit_holds_after_sleeps(no_leaks: None, make_pod: MakePod) -> None:
    """Memory and CPU; those of the start, those of an Update awake, those of one asleep."""
    pod = make_pod("stateful", LONG, memory_limit=300 << 20, cpu_quota_us=150_000)
    (app,) = pod.containers
    before = pod.get()
    for number, asleep in enumerate((False, False, True)):
        if number:
            limits = pb.LinuxContainerResources(
                memory_limit_in_bytes=(300 + number) << 20,
                cpu_quota=(15 + number) * 10_000,
                cpu_period=100_000,
                cpu_shares=512 * number,
            )
            if asleep:
                app.wait_asleep()
            pod.node.cri.update(app.id, limits)
        app.wait_asleep()
        after = pod.get()
        assert keeps(before, after)
        before = after
        found = _limits(app)
        assert str((300 + number) << 20) in found["memory"], found
        assert any(str((15 + number) * 10_000) in line for line in found["cpu"]), found
    pod.remove()


def _limits(app: Container) -> dict[str, list[str]]:
    """What the kernel holds the container to, by controller."""
    found: dict[str, list[str]] = {"memory": [], "cpu": []}
    for folder in app.cgroups():
        for name in ("memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max"):
            if (file := folder / name).exists():
                found[name.partition(".")[0]].append(file.read_text().strip())
    return found
