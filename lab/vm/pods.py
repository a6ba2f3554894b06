"""Pods of the checks, and what may be asked of them."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Container, Pod

IDLE: Final = {"scaledown-duration": "10s", "connect-timeout": "120s"}
PREFIX: Final = "zeropod.ctrox.dev/"
CGROUP: Final = Path("/sys/fs/cgroup")
PATIENCE_S: Final = 300.0
_PORTS: Final = {"stateful": 8080, "www": 80}
_numbers = itertools.count(1)


@contextmanager
def pod_of(
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
        annotations={f"{PREFIX}{k}": v for k, v in (IDLE | (annotations or {})).items()},
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


def get(pod: Pod, path: str = "/") -> dict[str, Any]:
    reply = pod.request(path, timeout=PATIENCE_S)
    assert reply.status == 200, reply
    return reply.json()


def users(pids: set[int]) -> list[int]:
    """Whose processes they are, in order."""
    found = []
    for pid in pids:
        with suppress(OSError):  # it has ended: a restorer, say
            status = Path(f"/proc/{pid}/status").read_text()
            found.append(int(re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE)[0]))
    return sorted(found)
