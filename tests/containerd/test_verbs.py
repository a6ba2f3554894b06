"""Update, Pause and Resume through containerd, awake and asleep."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from lab import waiting
from lab.pods import Container
from lab.proto import cri_pb2 as pb

from .conftest import MakePod
from .test_sleep import FAST, LONG, asleep, keeps

_MIB = 1 << 20


def _limit(app: Container) -> int:
    """The memory limit that the kernel holds the running container to."""
    for folder in app.cgroups():
        for name in ("memory.limit_in_bytes", "memory.max"):
            if (file := Path(folder) / name).exists():
                return int(file.read_text())
    raise AssertionError(f"{app.id} has no memory limit in {app.cgroups()}")


def _update(app: Container, mib: int) -> None:
    app.pod.node.cri.update(
        app.id, pb.LinuxContainerResources(memory_limit_in_bytes=mib * _MIB, cpu_shares=2)
    )


@pytest.mark.limits
def test_limits_survive_sleeps(no_leaks: None, make_pod: MakePod) -> None:
    """Those of the start, those set awake, and those set asleep."""
    pod = make_pod("stateful", LONG, memory_limit=300 * _MIB)
    (app,) = pod.containers
    before = pod.get()
    assert _limit(app) == 300 * _MIB
    app.wait_asleep()
    after = pod.get()
    assert keeps(before, after) and _limit(app) == 300 * _MIB
    _update(app, 310)
    assert _limit(app) == 310 * _MIB
    app.wait_asleep()
    before, after = after, pod.get()
    assert keeps(before, after) and _limit(app) == 310 * _MIB
    app.wait_asleep()
    _update(app, 320)
    assert not app.live_pids()
    before, after = after, pod.get()
    assert keeps(before, after) and _limit(app) == 320 * _MIB
    pod.remove()


def _ctr(app: Container, verb: str) -> str:
    return app.pod.node.run(["ctr", "--namespace=k8s.io", "tasks", verb, app.id])


def _listed(app: Container) -> str:
    lines = app.pod.node.run(["ctr", "--namespace=k8s.io", "tasks", "ls"]).splitlines()
    return next(line.split()[2] for line in lines if line.startswith(app.id))


def test_a_sleeper_is_paused_and_goes_on(no_leaks: None, make_pod: MakePod) -> None:
    pod, boot_id = asleep(make_pod)
    (app,) = pod.containers
    _ctr(app, "pause")
    assert _listed(app) == "PAUSED"
    with pytest.raises(grpc.RpcError):
        app.exec("true")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pod.get)
        with pytest.raises(TimeoutError):  # it is frozen for longer than it may be idle
            answer.result(2)
        _ctr(app, "resume")
        found = answer.result(120)
    assert (found["boot_id"], found["count"]) == (boot_id, 2)
    assert _listed(app) == "RUNNING"
    app.wait_asleep()
    assert keeps(found, pod.get())
    pod.remove()


def test_a_paused_container_is_stopped_and_removed(no_leaks: None, make_pod: MakePod) -> None:
    pod = make_pod("nginx", FAST)
    (app,) = pod.containers
    _ctr(app, "pause")
    app.stop(0)
    assert app.wait_exited() == 137
    pod.remove()


@pytest.mark.limits
@pytest.mark.parametrize("handler", ["runc", "zeropod"])
def test_out_of_memory_is_told(no_leaks: None, make_pod: MakePod, handler: str) -> None:
    pod = make_pod("stateful", FAST, handler=handler, memory_limit=60 * _MIB)
    (app,) = pod.containers
    if handler == "zeropod":
        app.wait_asleep()
    with pytest.raises(ConnectionError):
        pod.get("/allocate?mb=100")
    assert app.wait_exited() == 137
    waiting.until("its reason", lambda: app.status().reason == "OOMKilled")  # an event of its own
    pod.remove()


@pytest.mark.parametrize("ends", [False, True])
def test_a_checkpoint_for_somebody_else(
    no_leaks: None, make_pod: MakePod, tmp_path: Path, ends: bool
) -> None:
    """Asked of a sleeper, which is woken for it and goes on, or ends with it."""
    pod, boot_id = asleep(make_pod)
    (app,) = pod.containers
    task = ["ctr", "--namespace=k8s.io", "tasks", "checkpoint", f"--image-path={tmp_path}"]
    pod.node.run([*task, *(["--exit"] if ends else []), app.id])
    assert (tmp_path / "inventory.img").exists()
    if ends:
        assert app.wait_exited() == 137
    else:
        found = pod.get()
        assert (found["boot_id"], found["count"]) == (boot_id, 2)
        app.wait_asleep()
        assert keeps(found, pod.get())
    pod.remove()
