"""Pods to measure: they run, they sleep with nothing left to be done, they are gone whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from lab import waiting
from lab.container_images import NGINX, STATEFUL, Image
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Container, Pod

PORTS = {NGINX.name: 80, STATEFUL.name: 8080}
IDLE = "400ms"
NEVER = "0"
_IMAGES = "/var/lib/zeropod/i/k8s.io."
_REST_S = 0.2
_numbers = itertools.count(1)


def spec(node: Node, handler: str, idle: str = NEVER, **more: str) -> PodSpec:
    """A pod that sleeps when it was idle for so long; the stock handler takes no notice of it.

    ``more``: other annotations of zeropod.
    """
    given = {"scaledown-duration": idle, **more}
    annotations = {f"zeropod.ctrox.dev/{name}": value for name, value in given.items()}
    name = f"bench-{next(_numbers)}"
    return PodSpec(name, handler, "bench", annotations, cgroup_parent=node.cgroup_parent)


def container_spec(image: Image, attempt: int = 0) -> ContainerSpec:
    return ContainerSpec(image.name, image.reference, attempt=attempt)


@contextmanager
def running(node: Node, made_from: PodSpec, container: ContainerSpec, port: int) -> Iterator[Pod]:
    """A pod of one container that listens."""
    made = Pod(node, made_from)
    try:
        made.add(container)
        made.wait_for_port(port)
        yield made
    finally:
        made.remove()


@contextmanager
def pod(node: Node, image: Image, *, handler: str = "zeropod", idle: str = IDLE) -> Iterator[Pod]:
    """One of an image of the lab."""
    port = PORTS[image.name]
    with running(node, spec(node, handler, idle), container_spec(image), port) as made:
        yield made


def warm_up(node: Node) -> None:
    """Use both handlers, so that what is made once (zygote, bridge, CRIU's cache) is made."""
    with pod(node, NGINX, handler="runc"):
        pass
    with pod(node, NGINX) as made:
        (app,) = made.containers
        asleep(app)


def prepared(container: Container) -> Path:
    """Wait until it sleeps, with its next restore prepared. Returns the directory of that sleep."""
    container.wait_asleep()
    store = container.pod.node.path(f"{_IMAGES}{container.id}")

    def found() -> Path | None:
        return next(store.glob("*/work/restore-*"), None)

    attempt = waiting.until(f"prepared restore of {container.spec.name}", found)
    return attempt.parent.parent


def rest() -> None:
    """Leave the machine a moment, as a client does who comes later."""
    Event().wait(_REST_S)


def asleep(container: Container) -> Path:
    """Wait until it sleeps, prepared, and a moment more. Returns the directory of that sleep."""
    made = prepared(container)
    rest()
    return made
