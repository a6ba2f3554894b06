"""Faults to inject into a node from outside: CRIU away or replaced, images on a small disk.

All are mounts in the node's mount namespace, over paths that every shim looks up anew; each ends
with its `with` block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import paths
from lab.node import Node
from lab.steps import remove

CRIU = paths.TOOLS / "bin/criu"
_FOLDER = Path("/run/lab-criu")
REAL_CRIU = _FOLDER / "criu"
"""Where a replacement of CRIU finds the real one; its folder is its own to keep notes in."""

IMAGES = Path("/var/lib/zeropod/i")


@contextmanager
def criu_missing(node: Node) -> Iterator[None]:
    """No CRIU can be executed."""
    with _mounted(node, "--bind", "/dev/null", CRIU):
        yield


@contextmanager
def criu_replaced(node: Node, script: str) -> Iterator[None]:
    """A shell script runs in CRIU's place.

    It should `exec` CRIU: the runtime puts the process that it has started into the container's
    cgroup, and not what that one has forked before.
    """
    replacement = _FOLDER / "replacement"
    node.path(_FOLDER).mkdir()
    node.path(REAL_CRIU).touch()
    node.path(replacement).write_text(f"#!/bin/sh\n{script}\n")
    node.path(replacement).chmod(0o755)
    try:
        with (
            _mounted(node, "--bind", CRIU, REAL_CRIU),
            _mounted(node, "--bind", replacement, CRIU),
        ):
            yield
    finally:
        remove(node.path(_FOLDER))


@contextmanager
def image_disk(node: Node, options: str) -> Iterator[None]:
    """Images go to a tmpfs with these mount options; `resize` changes them. No pod may be left."""
    with _mounted(node, "-t", "tmpfs", "-o", f"mode=711,{options}", "lab", IMAGES):
        yield


def resize(node: Node, options: str) -> None:
    """Change the options of the `image_disk`."""
    node.run(["mount", "-o", f"remount,{options}", IMAGES])


@contextmanager
def _mounted(node: Node, *mount: str | Path) -> Iterator[None]:
    node.run(["mount", *mount])
    try:
        yield
    finally:
        node.run(["umount", "--lazy", mount[-1]])  # a failed test may have left it in use
