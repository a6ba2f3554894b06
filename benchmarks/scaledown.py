"""What falling asleep takes: how long, how long the app stands still, how much lies on disk.

The whole time is what the shim logs: from the moment at which new connections are held to the
prepared restore. While the app is frozen it cannot answer; CRIU says how long that is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from benchmarks import client, criu_stats, pods
from benchmarks.report import Report, Table, times
from lab import paths, show
from lab.container_images import NGINX
from lab.node import Node
from lab.steps import LabError, say

ABOUT = "duration of a checkpoint of nginx, and its size on disk"
ROUNDS = 20
_PAGE = 4096


def logged_ns(log: str, container: str) -> list[int]:
    """How long each sleep of a container took to begin, as its shim wrote into containerd's log."""
    found = re.findall(rf"{container}: asleep after (\d+) ms", log)
    return [int(ms) * 1_000_000 for ms in found]


def _size(folder: Path) -> tuple[int, int]:
    """(bytes in the files, bytes that they take on the disk)."""
    files = [entry.lstat() for entry in folder.rglob("*")]
    return sum(file.st_size for file in files), sum(file.st_blocks * 512 for file in files)


def run(node: Node, rounds: int) -> Report:
    pods.warm_up(node)
    took: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, list[float]] = defaultdict(list)
    with pods.pod(node, NGINX) as pod:
        (app,) = pod.containers
        for number in range(1, rounds + 1):
            sleep = pods.asleep(app)
            stats = criu_stats.dump(sleep / "work/dump/stats-dump")
            took["app frozen"].append(stats["frozen_us"] * 1e3)
            took["until all is frozen"].append(stats["freezing_us"] * 1e3)
            took["memory taken"].append(stats["memdump_us"] * 1e3)
            took["memory written"].append(stats["memwrite_us"] * 1e3)
            sizes["memory in the images"].append(stats["pages_written"] * _PAGE)
            length, disk = _size(sleep / "images")
            sizes["all images"].append(length)
            sizes["on disk"].append(disk)
            say(f"{number}: frozen {stats['frozen_us'] / 1e3:.1f} ms, {show.size(disk)} on disk")
            client.get(node, pod.address, pods.PORTS[NGINX.name])
        whole = logged_ns((paths.NODE / "containerd.log").read_text(), app.id)[:rounds]
    if len(whole) != rounds:
        raise LabError(f"{rounds} sleeps, but containerd's log has {len(whole)}")
    durations: dict[str, list[float]] = {"whole": [*map(float, whole)], **took}
    medians = [
        [label, show.size(int(show.percentile(values, 0.5)))] for label, values in sizes.items()
    ]
    return Report(
        "scaledown: checkpoint of nginx",
        [times(durations, "scale-down"), Table(["size", "p50"], medians)],
        samples={
            **{f"{label} (ns)": values for label, values in durations.items()},
            **{f"{label} (bytes)": values for label, values in sizes.items()},
        },
    )
