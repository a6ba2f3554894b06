"""The checks: each takes the node, raises where something is wrong, and returns what it has seen.

Nothing here waits by the clock: what is waited for has an event or a state, and bounds are twenty
times those of a real processor (`waiting.SLOWNESS`). The idle time is long enough that an answer is
never taken for idleness.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from lab import kernel, processes, waiting
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Container, Pod
from lab.proto import cri_pb2 as pb
from lab.vm import apps

_IDLE: Final = {"scaledown-duration": "10s", "connect-timeout": "120s"}
_PREFIX: Final = "zeropod.ctrox.dev/"
_PORTS: Final = {"stateful": 8080, "www": 80}
_CGROUP: Final = Path("/sys/fs/cgroup")
_MIB: Final = 1 << 20
_PATIENCE_S: Final = 300.0
_ROOT: Final = 200_000
_OF_PODS: Final = ("containerd-shim", "criu", "nginx", "pause", "postgres", "python3", "runc")
_numbers = itertools.count(1)


@contextmanager
def _pod(
    node: Node,
    image: str = "stateful",
    *,
    handler: str = "zeropod",
    user_namespace: int = 0,
    annotations: dict[str, str] | None = None,
    **container: Any,
) -> Iterator[tuple[Pod, Container]]:
    """A pod with one container that listens, whose cgroups systemd makes."""
    spec = PodSpec(
        f"{image}-{next(_numbers)}",
        handler,
        annotations={f"{_PREFIX}{k}": v for k, v in (_IDLE | (annotations or {})).items()},
        systemd=True,
        user_namespace=user_namespace,
    )
    pod = Pod(node, spec)
    try:
        app = pod.add(ContainerSpec(image, f"localhost/{image}:lab", **container))
        pod.wait_for_port(_PORTS[image])
        yield pod, app
    finally:
        pod.remove()
        subprocess.run(["systemctl", "stop", spec.cgroup], check=True)


def _get(pod: Pod, path: str = "/") -> dict[str, Any]:
    reply = pod.request(path, timeout=_PATIENCE_S)
    assert reply.status == 200, reply
    return reply.json()


def _scope(app: Container) -> Path:
    (found,) = _CGROUP.rglob(f"cri-containerd-{app.id}.scope")
    return found


def _sleep_and_wake(pod: Pod, app: Container) -> None:
    """With the same memory."""
    before = _get(pod)
    app.wait_asleep()
    after = _get(pod)
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
    with _pod(node) as (pod, app):
        _sleep_and_wake(pod, app)
        sandbox = node.cri.pod_info(pod.id)["pid"]  # the app's first one is a zombie by now
        qdiscs = node.run(["nsenter", f"--net=/proc/{sandbox}/ns/net", "tc", "qdisc", "show"])
        clsact = "clsact" in qdiscs
        release = tuple(map(int, platform.release().split(".")[:2]))
        assert clsact == (release < (6, 6)), qdiscs
        app.wait_asleep()
        assert pod.request("/", address=pod.addresses[1], timeout=_PATIENCE_S).status == 200
    return "by clsact" if clsact else "by TCX"


def _limits_survive(node: Node) -> str:
    with _pod(node, memory_limit=300 * _MIB, cpu_quota_us=150_000) as (pod, app):
        assert _limits(app) == _as_seen(300, 150_000)
        _sleep_and_wake(pod, app)
        assert _limits(app) == _as_seen(300, 150_000)
        node.cri.update(app.id, _resources(400, 120_000))
        assert _limits(app) == _as_seen(400, 120_000)
        _sleep_and_wake(pod, app)
        assert _limits(app) == _as_seen(400, 120_000)
    return "memory.max and cpu.max, also those of an Update awake"


def _limits_set_asleep(node: Node) -> str:
    with _pod(node, memory_limit=300 * _MIB, cpu_quota_us=150_000) as (pod, app):
        before = _get(pod)
        app.wait_asleep()
        node.cri.update(app.id, _resources(500, 110_000))
        assert not app.live_pids(), "an Update has woken it"
        assert _get(pod)["boot_id"] == before["boot_id"]
        waiting.until("the new limits", lambda: _limits(app) == _as_seen(500, 110_000))
    return "hold after the restore"


def _oom(node: Node) -> str:
    with _pod(node, memory_limit=128 * _MIB) as (pod, app):
        _sleep_and_wake(pod, app)
        try:
            pod.request("/allocate?mb=400", timeout=_PATIENCE_S)
        except OSError:
            pass
        else:
            raise AssertionError("400 MiB fitted into 128")
        code = app.wait_exited()
        reason = app.status().reason
        assert (code, reason) == (137, "OOMKilled"), (code, reason)
    return "137, OOMKilled, of a restored container"


def _www(node: Node) -> str:
    with _pod(node, "www") as (pod, app):
        before = _users(app)
        assert sorted(before.values()) == [0, 33, 33], before
        number = 0
        for _ in range(5):
            number = int(pod.request("/", port=80, timeout=_PATIENCE_S).body)
        app.wait_asleep()
        after = int(pod.request("/", port=80, timeout=_PATIENCE_S).body)
        assert after == number + 1, (number, after)
        assert sorted(_users(app).values()) == [0, 33, 33]
    return "root's master, two workers of www-data; their shared memory counts on"


def _users(app: Container) -> dict[int, int]:
    """The processes and their users."""
    found = {}
    for pid in app.live_pids():
        status = Path(f"/proc/{pid}/status").read_text()
        found[pid] = int(re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE)[0])
    return found


def _postgres(node: Node) -> str:
    """Without CRI: it has System V shared memory, and so must have its own IPC namespace."""
    name, netns, group = "postgres-1", "/run/netns/postgres", "/postgres-1"
    ctr = ["ctr", "--namespace=k8s.io"]
    node.run(["ip", "netns", "add", "postgres"])
    node.run(["ip", "-n", "postgres", "link", "set", "lo", "up"])
    annotations = [f"--annotation={_PREFIX}{key}={value}" for key, value in _IDLE.items()]
    runtime = ["--runtime=io.containerd.zeropod.v2", f"--with-ns=network:{netns}"]
    more = [f"--cgroup={group}", f"--annotation={_PREFIX}ports-map={name}=5432"]
    node.run(
        [*ctr, "run", "--detach", *runtime, *more, *annotations, apps.POSTGRES.reference, name],
        timeout=_PATIENCE_S,
    )
    try:
        return _ask_postgres(Path(netns), _CGROUP / group.strip("/"))
    finally:
        node.run([*ctr, "tasks", "rm", "--force", name], timeout=_PATIENCE_S)
        node.run([*ctr, "containers", "rm", name], timeout=_PATIENCE_S)
        node.run(["ip", "netns", "delete", "postgres"])


def _ask_postgres(netns: Path, group: Path) -> str:
    def query(sql: str) -> list[str] | None:
        with kernel.network_namespace(netns):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with connection:
            connection.settimeout(_PATIENCE_S)
            try:
                connection.connect(("127.0.0.1", 5432))
                return _query(connection, sql)
            except (ConnectionError, _StartingUp):
                return None

    def asleep() -> bool:
        pids = {
            int(pid) for file in group.rglob("cgroup.procs") for pid in file.read_text().split()
        }
        return not any(processes.alive(pid) for pid in pids)

    (started,) = waiting.until("PostgreSQL", lambda: query("SELECT pg_postmaster_start_time()"))
    waiting.until("a table", lambda: query("CREATE TABLE seen (n int)") is not None)
    for number in range(1, 4):
        assert query("INSERT INTO seen VALUES (1)") == []
        waiting.until("its sleep", asleep, 60)
        found = query("SELECT pg_postmaster_start_time() UNION ALL SELECT NULL FROM seen")
        assert found is not None and found[0] == started, (started, found)
        assert len(found) == 1 + number, found
    return "three sleeps of one postmaster and its workers, by uid 999"


class _StartingUp(Exception):
    """PostgreSQL does not take queries yet."""


def _query(connection: socket.socket, sql: str) -> list[str]:
    """The first column of what a query of the simple protocol gives, NULL as ""."""
    start = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
    connection.sendall(struct.pack("!i", len(start) + 4) + start)
    stream = connection.makefile("rb")
    rows: list[str] = []
    asked = False
    while head := stream.read(5):
        kind, size = head[:1], struct.unpack("!i", head[1:])[0] - 4
        body = stream.read(size)
        if kind == b"E":
            if b"C57P03\0" in body:
                raise _StartingUp
            raise AssertionError(body)
        if kind == b"D":
            (length,) = struct.unpack("!i", body[2:6])
            rows.append(body[6 : 6 + max(length, 0)].decode())
        if kind == b"Z":
            if asked:
                return rows
            text = sql.encode() + b"\0"
            connection.sendall(b"Q" + struct.pack("!i", len(text) + 4) + text)
            asked = True
    raise ConnectionResetError("PostgreSQL has closed the connection")


def _pre_dump(node: Node) -> str:
    with _pod(node, annotations={"pre-dump": "true"}) as (pod, app):
        before = _get(pod, "/allocate?mb=48")
        seen = []
        for number in range(2):
            app.wait_asleep()
            images = app.images()
            ahead = images.parent / "pre-dump"
            sizes = (_pages(ahead), _pages(images))
            assert sizes[0] > 48 * _MIB > 8 * sizes[1], sizes
            manifest = json.loads((images.parent / "manifest.json").read_text())["files"]
            assert sum(size for size, _ in manifest.values()) > sum(sizes)
            after = _get(pod)
            assert after["boot_id"] == before["boot_id"]
            assert after["count"] == before["count"] + 1 + number
            seen.append(sizes)
    ahead_mib, left_mib = (size / _MIB for size in seen[-1])
    return f"{ahead_mib:.0f} MiB written while it ran, {left_mib:.1f} MiB while it was frozen"


def _pages(images: Path) -> int:
    return sum(file.stat().st_size for file in images.glob("pages-*.img"))


def _user_namespace(node: Node) -> str:
    with (
        _pod(node, handler="zeropod-by-path", user_namespace=_ROOT) as (pod, app),
        _pod(node) as (_, other),
    ):
        before = _get(pod)
        assert set(_users(app).values()) == {_ROOT}
        said = app.exec("sh", "-c", "cat /proc/self/uid_map && echo x > /made && stat -c %u /made")
        assert said.stdout.split() == [b"0", str(_ROOT).encode(), b"65536", b"0"], said
        other.wait_asleep()  # so it would have, too
        assert app.live_pids()
        after = _get(pod)
        assert after["boot_id"] == before["boot_id"]
    return "runs as under the stock shim, and does not sleep"


def _killed_shim(node: Node) -> str:
    with _pod(node) as (pod, app):
        app.wait_asleep()
        folder = node.path(f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{pod.id}")
        address = json.loads((folder / "bootstrap.json").read_text())["address"]
        every = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
        path = str(address).removeprefix("unix://")
        (shim,) = processes.holders_of_socket(Path("/proc/1/net"), path, every)
        os.kill(shim, signal.SIGKILL)
        assert app.wait_exited() == 137
        store, container = app.image_store(), app.id
    assert not store.exists()
    assert not list(_CGROUP.rglob(f"*{container}*"))
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
            *(str(path) for path in Path("/var/lib/zeropod/i").iterdir()),
            *(str(path) for path in Path("/tmp").glob(".criu*")),
            *(name for name in _names() if name in _OF_PODS),
        ]

    try:
        waiting.until("end of everything", lambda: not left())
    except TimeoutError:
        raise AssertionError(", ".join(left())) from None
    return "no unit, mount, namespace, image, process"


def _names() -> Iterator[str]:
    """Of all processes."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended
            if entry.name.isdecimal():
                yield (entry / "comm").read_text().strip()


CHECKS: Final[dict[str, Callable[[Node], str]]] = {
    "a pod sleeps and wakes, over IPv4 and IPv6": _tcx,
    "limits survive a sleep (systemd's cgroups)": _limits_survive,
    "limits that are set asleep": _limits_set_asleep,
    "out of memory (memory.events)": _oom,
    "nginx with workers of another user": _www,
    "PostgreSQL as its own user": _postgres,
    "pre-dump": _pre_dump,
    "a pod in a user namespace": _user_namespace,
    "the shim is killed": _killed_shim,
    "nothing is left": _nothing_is_left,
}
