"""A hundred pods at once: made, asleep, woken, removed.

A machine with two processors is busy with that for minutes. Nobody may lose his memory for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from lab import waiting
from lab.container_images import STATEFUL
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Pod

PODS = 100
_AT_ONCE = 12
"""As many as the kubelet would; containerd itself takes as long with more."""
_IDLE = {"zeropod.ctrox.dev/scaledown-duration": "20s"}
"""Longer than a busy machine keeps the app from an answer."""
_TIMEOUT_S = 600
_Thing = TypeVar("_Thing")
_Done = TypeVar("_Done")


def _all(do: Callable[[_Thing], _Done], things: Iterable[_Thing], at_once: int) -> list[_Done]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(do, things))


@pytest.mark.timeout(1800)
def test_a_hundred_pods_at_once(no_leaks: None, node: Node) -> None:
    made: list[Pod] = []

    def make(number: int) -> None:
        group = node.cgroup_parent
        pod = Pod(node, PodSpec(f"many-{number}", annotations=_IDLE, cgroup_parent=group))
        made.append(pod)
        pod.add(ContainerSpec("stateful", STATEFUL.reference))
        pod.wait_for_port(8080, _TIMEOUT_S)

    def ask(pod: Pod) -> tuple[object, object]:
        reply = pod.request(timeout=_TIMEOUT_S).json()
        return reply["boot_id"], reply["count"]

    def asleep() -> bool:
        return not any(pod.containers[0].live_pids() for pod in made)

    try:
        _all(make, range(PODS), _AT_ONCE)
        before = _all(ask, made, _AT_ONCE)
        assert [count for _, count in before] == [1] * PODS
        waiting.until("sleep of all", asleep, _TIMEOUT_S, interval=0.5)
        after = _all(ask, made, PODS)
        assert after == [(boot_id, 2) for boot_id, _ in before]
    finally:
        _all(Pod.remove, made, PODS)
