"""The configuration files of the node: containerd with CRI, and the CNI bridge.

containerd's is written in version 2 of its format, which 1.7 and 2.x both read.
"""

from __future__ import annotations

import json

from lab import other_containerd, paths
from lab.container_images import PAUSE
from lab.steps import write_file

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CONTAINERD_CONFIG = paths.NODE / "containerd.toml"
_CNI_FOLDER = paths.NODE / "cni"
_ANNOTATIONS = '["zeropod.ctrox.dev/*", "io.containerd.runc.v2.group"]'

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SEARCH_PATH = f"{paths.VENV}/bin:{other_containerd.programs()}:{paths.TOOLS}/bin:{_SYSTEM_PATH}"
"""PATH of containerd and of all that it starts: the wheel's launcher first."""

_RUNTIME = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]'


def _handler(name: str, runtime_type: str, more: str = "", *, systemd: bool = False) -> str:
    """A runtime of CRI; its options reach the shim in the form that the runtime type decides."""
    return f"""
{_RUNTIME.format(name=name)}
runtime_type = "{runtime_type}"
{more}pod_annotations = {_ANNOTATIONS}
container_annotations = {_ANNOTATIONS}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
BinaryName = "{paths.TOOLS}/bin/runc"
SystemdCgroup = {str(systemd).lower()}
"""


def _containerd(*, systemd: bool, may_lower_oom_score: bool) -> str:
    launcher = f'runtime_path = "{paths.VENV}/bin/containerd-shim-zeropod-v2"\n'
    return f"""version = 2
root = "{paths.STATE}/containerd"
state = "/run/containerd"

[grpc]
address = "{CONTAINERD_SOCKET}"

[debug]
level = "info"

[plugins."io.containerd.internal.v1.opt"]
path = "{paths.STATE}/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE.reference}"
# Lowering a score needs CAP_SYS_RESOURCE, which a development machine may not have.
restrict_oom_score_adj = {str(not may_lower_oom_score).lower()}

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{paths.TOOLS}/cni"
conf_dir = "{_CNI_FOLDER}"

[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
{_handler("runc", "io.containerd.runc.v2", systemd=systemd)}
# Options arrive as runtimeoptions.v1.Options: TOML in config_body.
{_handler("zeropod", "io.containerd.zeropod.v2", systemd=systemd)}
# The same shim by path: options arrive as containerd.runc.v1.Options.
{_handler("zeropod-by-path", "io.containerd.runc.v2", launcher, systemd=systemd)}"""


def _cni() -> str:
    ranges = [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": "/run/cni"},
    }
    return json.dumps({"cniVersion": "1.0.0", "name": "lab", "plugins": [bridge]}, indent=2)


def write(*, systemd: bool = False, may_lower_oom_score: bool = False) -> None:
    """Write all of them. ``systemd``: it makes the pods' cgroups."""
    _CNI_FOLDER.mkdir(parents=True, exist_ok=True)
    write_file(
        CONTAINERD_CONFIG, _containerd(systemd=systemd, may_lower_oom_score=may_lower_oom_score)
    )
    write_file(_CNI_FOLDER / "10-lab.conflist", _cni() + "\n")
