"""The shim, or containerd, is killed in the moment when a step is taken.

The step is a verb of the runtime: right before it does its work, and right after. Whoever asked for
it may be told anything; afterwards the pod can be removed, nothing is left of it, and other pods
have noticed nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from lab import processes, waiting
from lab.container_images import STATEFUL
from lab.cri import ContainerSpec, PodSpec
from lab.faults import Killer, runtime_that_kills
from lab.node import Node
from lab.pods import Pod

from .conftest import MakePod, bounded

_WHEN = pytest.mark.parametrize("when", ["before", "after"])
_VERBS = ("create", "start", "exec", "kill", "checkpoint", "restore", "delete")


@pytest.fixture
def killer(no_leaks: None, node: Node) -> Iterator[Killer]:
    with runtime_that_kills(node) as made:
        yield made


def _pod(node: Node, duration: str) -> Pod:
    annotations = {"zeropod.ctrox.dev/scaledown-duration": duration}
    return Pod(node, PodSpec("steps", annotations=annotations, cgroup_parent=node.cgroup_parent))


def _take(pod: Pod, verb: str, killer: Killer, victim: int | None, when: str) -> None:
    """Have the pod's app take the step, with the victim killed at it."""
    by_itself = verb in ("create", "start", "checkpoint")
    if by_itself:
        killer.at(verb, victim, when)
    with suppress(grpc.RpcError):
        app = pod.add(ContainerSpec("stateful", STATEFUL.reference))
        if by_itself:
            return
        pod.wait_for_port(8080)
        if verb == "restore":
            app.wait_asleep()
            waiting.until("the images", app.images)
        killer.at(verb, victim, when)
        if verb == "exec":
            app.exec("true")
        elif verb == "kill":
            app.stop(5)
        elif verb == "restore":
            with suppress(OSError):
                pod.get()
        elif verb == "delete":
            app.stop(0)
            app.remove()


@_WHEN
@pytest.mark.parametrize("verb", _VERBS)
def test_the_shim_is_killed(
    killer: Killer, node: Node, make_pod: MakePod, verb: str, when: str
) -> None:
    other = make_pod("nginx", {"scaledown-duration": "500ms"})
    other.containers[0].wait_asleep()
    pod = _pod(node, "1s" if verb in ("checkpoint", "restore") else "1h")
    try:
        _take(pod, verb, killer, None, when)
        waiting.until(f"the shim's death at {verb}", lambda: killer.has_killed(verb))
    finally:
        with bounded("removal"):
            pod.remove()
    assert other.request(port=80).status == 200


@_WHEN
@pytest.mark.parametrize("verb", [verb for verb in _VERBS if verb not in ("checkpoint", "restore")])
def test_containerd_is_killed(
    killer: Killer, node: Node, make_pod: MakePod, verb: str, when: str
) -> None:
    """What the shim does goes on; containerd finds it again."""
    other = make_pod("nginx", {"scaledown-duration": "500ms"})
    other.containers[0].wait_asleep()
    pod = _pod(node, "1h")
    victim = node.containerd_pid
    try:
        _take(pod, verb, killer, victim, when)
        waiting.until(f"containerd's death at {verb}", lambda: not processes.alive(victim))
        assert killer.has_killed(verb)
        node.start_containerd()
    finally:
        with bounded("removal"):
            pod.remove()
    assert other.request(port=80).status == 200
    assert other.containers[0].exec("echo", "alive").stdout == b"alive\n"
