"""How a pod's containers come to their shim, and what becomes of them when it dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import other_containerd, paths, processes, waiting
from lab.cri import ContainerSpec
from lab.faults import wrapped
from lab.node import Node
from lab.pods import Pod

from .conftest import MakePod, bounded, use
from .test_sleep import FAST

_LAUNCHER = paths.VENV / "bin/containerd-shim-zeropod-v2"
_NOTES = Path("/run/lab-launcher")
Invocations = Callable[[], list[str]]


@pytest.fixture
def invocations(node: Node) -> Iterator[Invocations]:
    """The command lines that containerd has executed the launcher with since the test began.

    A wrapped launcher has a zygote of its own: in the end the launcher itself has one again.
    """
    with wrapped(node, _LAUNCHER, f'echo "$*" >> {_NOTES}'):
        yield lambda: node.path(_NOTES).read_text().splitlines()
    use(node, "zeropod")
    node.path(_NOTES).unlink(missing_ok=True)


def _starts(invocations: Invocations) -> int:
    return sum(line.endswith(" start") for line in invocations())


@pytest.mark.parametrize("handler", ["zeropod", "zeropod-by-path"])
def test_the_launcher_is_executed_once_for_a_pod(
    invocations: Invocations, make_pod: MakePod, handler: str
) -> None:
    """By containerd 1.7 for every container."""
    pod = make_pod("stateful", FAST, handler=handler)
    second = pod.add(ContainerSpec("nginx", "localhost/nginx:lab"))
    assert _starts(invocations) == (3 if other_containerd.version().startswith("1.7") else 1)
    said = pod.get()
    pod.containers[0].wait_asleep()
    assert pod.get()["boot_id"] == said["boot_id"]
    assert second.exec("echo", "alive").stdout == b"alive\n"


def _kill_shim(pod: Pod) -> None:
    shim = pod.shim_pid()
    os.kill(shim, signal.SIGKILL)
    waiting.until("the shim's end", lambda: not processes.alive(shim))


@pytest.mark.parametrize("handler", ["zeropod", "zeropod-by-path"])
@pytest.mark.parametrize("restart", [False, True], ids=["", "containerd started anew"])
def test_the_containers_of_a_dead_shim_end_with_it(
    no_leaks: None, node: Node, make_pod: MakePod, handler: str, restart: bool
) -> None:
    """Though nobody removes the pod: one that sleeps, one that runs, one that is gone already."""
    pod = make_pod("stateful", FAST, handler=handler)
    pod.add(ContainerSpec("second", "localhost/nginx:lab"))
    gone = pod.add(ContainerSpec("gone", "localhost/nginx:lab"))
    gone.stop()
    gone.remove()
    if restart:
        node.kill_containerd()
        node.start_containerd()
    sleeps, runs, _ = pod.containers
    sleeps.wait_asleep()
    _kill_shim(pod)
    for app in (sleeps, runs):
        app.wait_exited()
        waiting.until("the end of its processes", lambda: not app.live_pids())  # noqa: B023
        waiting.until("the end of its images", lambda: not app.image_store().exists())  # noqa: B023
    with bounded("removal"):
        pod.remove()


def test_containers_of_a_shim_that_died_with_containerd(
    no_leaks: None, node: Node, make_pod: MakePod
) -> None:
    pod = make_pod("stateful", FAST, handler="zeropod-by-path")
    runs = pod.add(ContainerSpec("nginx", "localhost/nginx:lab"))
    shim = pod.shim_pid()
    node.kill_containerd()
    os.kill(shim, signal.SIGKILL)
    waiting.until("the shim's end", lambda: not processes.alive(shim))
    node.start_containerd()
    for app in (pod.containers[0], runs):
        app.wait_exited()
        waiting.until("the end of its processes", lambda: not app.live_pids())  # noqa: B023
    with bounded("removal"):
        pod.remove()
