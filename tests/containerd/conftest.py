"""A node for the whole session, and pods that are removed when their test ends."""

from __future__ import annotations

import itertools
import os
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from lab import leaks, node, waiting
from lab.container_images import NGINX
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Pod
from lab.steps import LabError

_PORTS = {"stateful": 8080, "nginx": 80}
_numbers = itertools.count(1)


@pytest.fixture(scope="session", name="node")
def _node() -> Iterator[Node]:
    """A node that ends with the session, also if the session is killed.

    Its soft limit of open files is below the hard one, as systemd starts containerd.
    """
    if os.geteuid():
        pytest.fail("tests/containerd needs root: it runs containers")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard // 2), hard))
    try:
        node.build()
        running = Node.start("pytest tests/containerd")
    except LabError as error:
        pytest.fail(str(error), pytrace=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with running:
        yield running


class MakePod(Protocol):
    def __call__(
        self,
        image: str = "stateful",
        annotations: Mapping[str, str] | None = None,
        *,
        handler: str = "zeropod",
        pod_spec: Mapping[str, Any] | None = None,
        listens: bool = True,
        **container: Any,
    ) -> Pod: ...


@pytest.fixture
def make_pod(node: Node) -> Iterator[MakePod]:
    """Makes pods with one container, named like its image, that listens when the call returns
    (unless ``listens`` says that it will not).

    Annotations are given without the prefix ``zeropod.ctrox.dev/``; ``pod_spec`` has more fields of
    its PodSpec, ``container`` of its ContainerSpec.
    """
    made: list[Pod] = []

    def make(
        image: str = "stateful",
        annotations: Mapping[str, str] | None = None,
        *,
        handler: str = "zeropod",
        pod_spec: Mapping[str, Any] | None = None,
        listens: bool = True,
        **container: Any,
    ) -> Pod:
        given = {f"zeropod.ctrox.dev/{k}": v for k, v in (annotations or {}).items()}
        fields = {"annotations": given, "cgroup_parent": node.cgroup_parent, **(pod_spec or {})}
        spec = PodSpec(f"{image}-{next(_numbers)}", handler, **fields)
        pod = Pod(node, spec)
        made.append(pod)
        pod.add(ContainerSpec(image, f"localhost/{image}:lab", **container))
        if listens:
            pod.wait_for_port(_PORTS[image])
        return pod

    yield make
    for pod in made:
        pod.remove()


def use(node: Node, handler: str) -> None:
    """Run a pod and remove it: what a handler makes once and keeps has been made then."""
    spec = PodSpec(
        f"first-{handler}",
        handler,
        annotations={"zeropod.ctrox.dev/scaledown-duration": "100ms"},
        cgroup_parent=node.cgroup_parent,
    )
    pod = Pod(node, spec)
    try:
        app = pod.add(ContainerSpec("nginx", NGINX.reference))
        if handler == "zeropod":
            app.wait_asleep()
    finally:
        pod.remove()


@pytest.fixture(scope="session")
def used_node(node: Node) -> Node:
    """A node on which every handler has been used."""
    for handler in ("runc", "zeropod"):
        use(node, handler)
    return node


@pytest.fixture
def no_leaks(used_node: Node) -> Iterator[None]:
    """Fails the test when the node has more of anything after it than before.

    Name it before ``make_pod`` in a test's arguments: what is set up first is torn down last.
    """
    before = leaks.snapshot(used_node)
    if "zeropod-zygote" not in before.processes:  # it ends with a containerd that was killed
        use(used_node, "zeropod")
        before = leaks.snapshot(used_node)
    yield
    left = leaks.settled(used_node, before)
    assert not left, "left behind:\n" + "\n".join(left)


class Log:
    """What containerd and the shims have logged since the test began.

    A shim's lines take a way through a FIFO and containerd: they come a little later than it acts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = path.stat().st_size

    def __call__(self) -> str:
        with self._path.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    def wait_for(self, text: str) -> None:
        waiting.until(f"{text!r} in {self._path}", lambda: text in self())


@pytest.fixture
def log(node: Node) -> Log:
    return Log(node.containerd_log)


@contextmanager
def bounded(what: str, seconds: float = 60) -> Iterator[None]:
    """Fails when the block takes longer: far more than it ever should, on a busy machine too."""
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert took < seconds, f"{what} took {took:.1f} s"
