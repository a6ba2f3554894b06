"""Which containers may sleep."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from zeropod.config import CRI_CONTAINER_TYPE, Settings
from zeropod.oci.bundle import Bundle

_HOSTS: Final = ("self", "1")
"""Processes in the host's namespaces: the shim, and where it is in others, the node's init."""


def why_unscaled(bundle: Bundle, settings: Settings) -> str:
    """Why a container never sleeps; "" when it may."""
    if bundle.annotations.get(CRI_CONTAINER_TYPE) == "sandbox":
        return "it is the pod's sandbox"
    if not settings.enabled:
        return "container-names does not name it"
    if not settings.scales:
        return "scaledown-duration is 0"
    if bundle.namespace_path("user"):
        return "its user namespace is the pod's: a restore would put it into another one"
    network = bundle.namespace_path("network")
    if _is_hosts(network, "net"):
        return "it has the host's network"
    if network == "" and bundle.namespace_path("user") is not None:
        return "its network namespace would have to belong to its user namespace"
    pid = bundle.namespace_path("pid")
    if _is_hosts(pid, "pid"):
        return "it has the host's pid namespace"
    if pid:
        return "it shares its pid namespace, where its pids may be taken while it sleeps"
    if bundle.terminal:
        return "it has a terminal"
    return ""


def _is_hosts(path: str | None, name: str) -> bool:
    """Whether a container that joins the namespace at ``path`` is in the host's.

    The CRI gives every container its sandbox's by path, also where the sandbox has the host's.
    """
    if not path:
        return path is None
    for pid in _HOSTS:
        with contextlib.suppress(OSError):  # init's may be closed to us, the path lead nowhere
            if Path(path).samefile(f"/proc/{pid}/ns/{name}"):
                return True
    return False
