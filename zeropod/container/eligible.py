"""Which containers may sleep."""

from __future__ import annotations

from zeropod.config import CRI_CONTAINER_TYPE, Settings
from zeropod.oci.bundle import Bundle


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
    if network is None:
        return "it has the host's network"
    if not network and bundle.namespace_path("user") is not None:
        return "its network namespace would have to belong to its user namespace"
    if (bundle.config.get("process") or {}).get("terminal"):
        return "it has a terminal"
    return ""
