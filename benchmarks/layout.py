"""Records which functions shims run, for zeropod/shim/sharing.py, which puts their code together.

`python -m benchmarks.layout` runs pods on a node of its own: they start, sleep, wake, are executed
in, stopped and removed. Run it when the memory that `python -m benchmarks memory` shows has grown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import client, pods
from lab import node, paths
from lab.container_images import NGINX, STATEFUL
from lab.node import Node
from lab.steps import LabError, say

LAYOUT = paths.CHECKOUT / "zeropod/shim/code_layout.txt"
_RECORDER = Path(__file__).with_name("recorder.py")
_NAME = "zeropod_recorder"
_CYCLES = 3


@contextmanager
def _recording() -> Iterator[Path]:
    """Have the node's interpreter load the recorder. Yields its output."""
    (packages,) = paths.VENV.glob("lib/python*/site-packages")
    module, hook = packages / f"{_NAME}.py", packages / f"{_NAME}.pth"
    output = module.with_suffix(".out")
    try:
        output.unlink(missing_ok=True)
        module.write_bytes(_RECORDER.read_bytes())
        hook.write_text(f"import {_NAME}\n")
        yield output
    finally:
        for made in (hook, module, output):
            made.unlink(missing_ok=True)


def _live(running: Node) -> None:
    """What happens to pods in their lives."""
    for image in (NGINX, STATEFUL):
        with pods.pod(running, image) as pod:
            (app,) = pod.containers
            for _ in range(_CYCLES):
                pods.asleep(app)
                client.get(running, pod.address, pods.PORTS[image.name])
            pods.asleep(app)
            app.exec("true")
            app.stop()


def record() -> list[str]:
    """The functions, sorted.

    Raises:
        LabError: the node's interpreter has no sys.monitoring (before 3.12), or nothing was seen.
    """
    node.build()
    with _recording() as output:
        with Node.start("python -m benchmarks.layout") as running:
            _live(running)
        if not output.exists():
            raise LabError("no function was recorded: the node's Python must be 3.12 or newer")
        return sorted(set(output.read_text().splitlines()))


def main() -> int:
    try:
        found = record()
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    LAYOUT.write_text("\n".join(found) + "\n")
    say(f"{LAYOUT.relative_to(paths.CHECKOUT)}: {len(found)} functions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
