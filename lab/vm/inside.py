"""In the virtual machine: start the node, do the checks one after the other, report each.

Here systemd is init and containerd one of its services, as on a real node. A line of JSON on stdout
says how many checks there are, one more what became of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from pathlib import Path

from lab import config, container_images, keeper, other_containerd, paths
from lab.node import Node
from lab.steps import run, write_file
from lab.vm import apps
from lab.vm.checks import CHECKS
from lab.vm.report import CHOICE, Result

_UNIT = f"""[Unit]
Description=containerd

[Service]
Type=notify
ExecStart={other_containerd.programs()}/containerd --config {config.CONTAINERD_CONFIG}
Environment=PATH={config.SEARCH_PATH}
Delegate=yes
KillMode=process
OOMScoreAdjust=-999
LimitNOFILE=infinity
TimeoutStartSec=600
StandardOutput=append:{paths.NODE}/containerd.log
StandardError=append:{paths.NODE}/containerd.log
"""
_FORWARD = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
_NO_DAD = ("ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad")


def _start() -> Node:
    for names, value in ((_FORWARD, "1"), (_NO_DAD, "0")):
        for name in names:
            (Path("/proc/sys/net") / name).write_text(value)
    paths.NODE.mkdir(parents=True)
    config.write(systemd=True, may_lower_oom_score=True)
    write_file(Path("/run/systemd/system/containerd.service"), _UNIT)
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "start", "containerd"])
    ctr = f"{other_containerd.programs()}/ctr"
    for image in (container_images.PAUSE, container_images.STATEFUL, apps.WWW):
        command: list[str | Path] = [ctr, "--namespace=k8s.io", "images", "import", image.archive]
        run(command, env=keeper.environment())
    return Node(1, None)


def _say(line: str) -> None:
    print(line, flush=True)


def _chosen() -> list[str]:
    """The names of the checks to do."""
    words = Path("/proc/cmdline").read_text().split()
    (choice,) = (word.removeprefix(CHOICE) for word in words if word.startswith(CHOICE))
    return [name for name in CHECKS if any(part in name for part in choice.split(","))]


def main() -> None:
    chosen = _chosen()
    _say(json.dumps({"count": len(chosen)}))
    try:
        node = _start()
    except BaseException:
        subprocess.run(["journalctl", "--no-pager", "-u", "containerd"], stdout=2, check=False)
        raise
    for name in chosen:
        log = node.containerd_log
        begin = log.stat().st_size
        try:
            result = Result(name, True, CHECKS[name](node))
        except Exception as error:
            traceback.print_exc()
            with log.open("rb") as file:
                file.seek(begin)
                sys.stderr.write(file.read().decode(errors="replace"))
            lines = str(error).strip().splitlines() or [""]
            result = Result(name, False, f"{type(error).__name__}: {lines[0]}")
        _say(result.line())


if __name__ == "__main__":
    main()
