"""The checks: each takes the node, raises where something is wrong, and returns what it has seen.

Nothing here waits by the clock: what is waited for has an event or a state, and bounds are twenty
times those of a real processor (`waiting.SLOWNESS`). The idle time is long enough that an answer is
never taken for idleness.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from lab import processes, waiting
from lab.node import Node
from lab.pods import Container, Pod
from lab.proto import cri_pb2 as pb
from lab.vm import postgres
from lab.vm.pods import CGROUP, PATIENCE_S, get, pod_of, users

_MIB: Final = 1 << 20
_ROOT: Final = 200_000
_UNKNOWN: Final = 255
"""containerd's code for an exit that nobody could tell it of."""
_CLEANUP_S: Final = 15
_OF_PODS: Final = ("containerd-shim", "criu", "nginx", "pause", "postgres", "python3", "runc")


def _scope(app: Container) -> Path:
    (found,) = CGROUP.rglob(f"cri-containerd-{app.id}.scope")
    return found


def _sleep_and_wake(pod: Pod, app: Container) -> None:
    """With the same memory."""
    before = get(pod)
    app.wait_asleep()
    after = get(pod)
    assert after["boot_id"] == before["boot_id"], (before, after)
    assert after["count"] == before["count"] + 1, (before, after)


def _limits(app: Container) -> tuple[str, str, str]:
    """(memory.max, cpu.max, systemd's word on the memory)."""
    scope = _scope(app)
    shown = subprocess.run(
        ["systemctl", "show", "--property=MemoryMax", "--value", scope.name],
        capture_output=True,
        text=True,
        check=True,
    )
    memory, cpu = ((scope / name).read_text().strip() for name in ("memory.max", "cpu.max"))
    return memory, cpu, shown.stdout.strip()


def _resources(memory_mib: int, quota_us: int) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(
        cpu_period=100_000,
        cpu_quota=quota_us,
        cpu_shares=2,
        memory_limit_in_bytes=memory_mib * _MIB,
    )


def _as_seen(memory_mib: int, quota_us: int) -> tuple[str, str, str]:
    memory = str(memory_mib * _MIB)
    return memory, f"{quota_us} 100000", memory


def _tcx(node: Node) -> str:
    with pod_of(node) as (pod, app):
        _sleep_and_wake(pod, app)
        sandbox = node.cri.pod_info(pod.id)["pid"]  # the app's first one is a zombie by now
        qdiscs = node.run(["nsenter", f"--net=/proc/{sandbox}/ns/net", "tc", "qdisc", "show"])
        clsact = "clsact" in qdiscs
        release = tuple(map(int, platform.release().split(".")[:2]))
        assert clsact == (release < (6, 6)), qdiscs
        app.wait_asleep()
        assert pod.request("/", address=pod.addresses[1], timeout=PATIENCE_S).status == 200
    return "by clsact" if clsact else "by TCX"


def _limits_survive(node: Node) -> str:
    with pod_of(node, memory_limit=300 * _MIB, cpu_quota_us=150_000) as (pod, app):
        assert _limits(app) == _as_seen(300, 150_000)
        _sleep_and_wake(pod, app)
        assert _limits(app) == _as_seen(300, 150_000)
        node.cri.update(app.id, _resources(400, 120_000))
        assert _limits(app) == _as_seen(400, 120_000)
        _sleep_and_wake(pod, app)
        assert _limits(app) == _as_seen(400, 120_000)
    return "memory.max and cpu.max, also those of an Update awake"


def _limits_set_asleep(node: Node) -> str:
    with pod_of(node, memory_limit=300 * _MIB, cpu_quota_us=150_000) as (pod, app):
        before = get(pod)
        app.wait_asleep()
        node.cri.update(app.id, _resources(500, 110_000))
        assert not app.live_pids(), "an Update has woken it"
        assert get(pod)["boot_id"] == before["boot_id"]
        waiting.until("the new limits", lambda: _limits(app) == _as_seen(500, 110_000))
    return "hold after the restore"


def _oom(node: Node) -> str:
    with pod_of(node, memory_limit=128 * _MIB) as (pod, app):
        _sleep_and_wake(pod, app)
        try:
            pod.request("/allocate?mb=400", timeout=PATIENCE_S)
        except OSError:
            pass
        else:
            raise AssertionError("400 MiB fitted into 128")
        code = app.wait_exited()
        reason = app.status().reason
        assert (code, reason) == (137, "OOMKilled"), (code, reason)
    return "137, OOMKilled, of a restored container"


def _www(node: Node) -> str:
    with pod_of(node, "www") as (pod, app):
        waiting.until("two workers", lambda: users(app.live_pids()) == [0, 33, 33])
        number = 0
        for _ in range(5):
            number = int(pod.request("/", port=80, timeout=PATIENCE_S).body)
        app.wait_asleep()
        after = int(pod.request("/", port=80, timeout=PATIENCE_S).body)
        assert after == number + 1, (number, after)
        waiting.until("the same processes", lambda: users(app.live_pids()) == [0, 33, 33])
    return "root's master, two workers of www-data; their shared memory counts on"


def _pre_dump(node: Node) -> str:
    with pod_of(node, annotations={"pre-dump": "true"}) as (pod, app):
        before = get(pod, "/allocate?mb=48")
        seen = []
        for number in range(2):
            app.wait_asleep()
            images = app.images()
            ahead = images.parent / "pre-dump"
            sizes = (_pages(ahead), _pages(images))
            assert sizes[0] > 48 * _MIB > 8 * sizes[1], sizes
            manifest = json.loads((images.parent / "manifest.json").read_text())["files"]
            assert sum(size for size, _ in manifest.values()) > sum(sizes)
            after = get(pod)
            assert after["boot_id"] == before["boot_id"]
            assert after["count"] == before["count"] + 1 + number
            seen.append(sizes)
    ahead_mib, left_mib = (size / _MIB for size in seen[-1])
    return f"{ahead_mib:.0f} MiB written while it ran, {left_mib:.1f} MiB while it was frozen"


def _pages(images: Path) -> int:
    return sum(file.stat().st_size for file in images.glob("pages-*.img"))


def _user_namespace(node: Node) -> str:
    with (
        pod_of(node, handler="zeropod-by-path", user_namespace=_ROOT) as (pod, app),
        pod_of(node) as (_, other),
    ):
        before = get(pod)
        assert set(users(app.live_pids())) == {_ROOT}
        said = app.exec("sh", "-c", "cat /proc/self/uid_map && echo x > /made && stat -c %u /made")
        assert said.stdout.split() == [b"0", str(_ROOT).encode(), b"65536", b"0"], said
        other.wait_asleep()  # so it would have, too
        assert app.live_pids()
        after = get(pod)
        assert after["boot_id"] == before["boot_id"]
    return "runs as under the stock shim, and does not sleep"


def _killed_shim(node: Node) -> str:
    with pod_of(node) as (pod, app):
        app.wait_asleep()
        folder = node.path(f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{pod.id}")
        address = json.loads((folder / "bootstrap.json").read_text())["address"]
        every = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
        path = str(address).removeprefix("unix://")
        (shim,) = processes.holders_of_socket(Path("/proc/1/net"), path, every)
        os.kill(shim, signal.SIGKILL)
        assert (code := app.wait_exited()) == _UNKNOWN, code
        store, container = app.image_store(), app.id
    waiting.until("end of its images", lambda: not store.exists(), _CLEANUP_S)
    left = partial(CGROUP.rglob, f"*{container}*")
    waiting.until("end of its cgroup", lambda: not list(left()), _CLEANUP_S)
    return "containerd's delete leaves no image, no cgroup"


def _nothing_is_left(node: Node) -> str:
    """Of all pods before this. containerd's own clean-up may still be under way."""

    def left() -> list[str]:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        units = subprocess.run(
            ["systemctl", "list-units", "--all", "--plain", "--no-legend", "cri-containerd-*"],
            capture_output=True,
            text=True,
            check=True,
        )
        return [
            *(line.split()[4] for line in mounts if "/k8s.io/" in line or "/netns/" in line),
            *units.stdout.splitlines(),
            *(str(path) for path in Path("/var/lib/zeropod/i").glob("*")),
            *(str(path) for path in Path("/tmp").glob(".criu*")),
            *(name for name in _names() if name.startswith(_OF_PODS)),
        ]

    try:
        waiting.until("end of everything", lambda: not left(), _CLEANUP_S)
    except TimeoutError:
        raise AssertionError(", ".join(left())) from None
    return "no unit, mount, namespace, image, process"


def _names() -> Iterator[str]:
    """Of all processes, as they call themselves: the zygote is no ``python3``."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended
            if entry.name.isdecimal():
                program, _, _ = (entry / "cmdline").read_text().partition("\0")
                yield Path(program.partition(" ")[0]).name


CHECKS: Final[dict[str, Callable[[Node], str]]] = {
    "a pod sleeps and wakes, over IPv4 and IPv6": _tcx,
    "limits survive a sleep (systemd's cgroups)": _limits_survive,
    "limits that are set asleep": _limits_set_asleep,
    "out of memory (memory.events)": _oom,
    "nginx with workers of another user": _www,
    "PostgreSQL as its own user": postgres.check,
    "pre-dump": _pre_dump,
    "a pod in a user namespace": _user_namespace,
    "the shim is killed": _killed_shim,
    "nothing is left": _nothing_is_left,
}
