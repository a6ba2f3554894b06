"""Faults to inject into a node from outside: CRIU away or replaced, images on a small disk,
somebody killed in the moment when the runtime is run.

All are mounts in the node's mount namespace, over paths that every shim looks up anew; each ends
with its `with` block.
"""

from __future__ import annotations

import shutil
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

RUNC = paths.TOOLS / "bin/runc"
_RUNC_FOLDER = Path("/run/lab-runc")
_KILLER = f"""
for verb; do
    case $verb in create|start|exec|kill|checkpoint|restore|delete) break ;; esac
done
if mv {_RUNC_FOLDER}/$verb {_RUNC_FOLDER}/$verb.was 2>/dev/null; then
    read victim when < {_RUNC_FOLDER}/$verb.was
    [ $victim = shim ] && victim=$PPID
    [ $when = after ] && {_RUNC_FOLDER}/runc "$@"
    kill -9 $victim
    [ $when = after ] && exit
fi
exec {_RUNC_FOLDER}/runc "$@"
"""

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
    with _replaced(node, CRIU, _FOLDER, script):
        yield


class Killer:
    """Waits for a verb of the runtime. Made by `runtime_that_kills`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def at(self, verb: str, victim: int | None, when: str) -> None:
        """SIGKILL for ``victim`` (None: the shim), ``before`` the next run of the verb or ``after``
        it."""
        (self._folder / verb).write_text(f"{victim or 'shim'} {when}\n")

    def has_killed(self, verb: str) -> bool:
        return (self._folder / f"{verb}.was").exists()


@contextmanager
def runtime_that_kills(node: Node) -> Iterator[Killer]:
    """The runtime is as always, but for what `Killer.at` says."""
    with _replaced(node, RUNC, _RUNC_FOLDER, _KILLER):
        yield Killer(node.path(_RUNC_FOLDER))


@contextmanager
def wrapped(node: Node, program: Path, script: str) -> Iterator[None]:
    """A shell script runs before each execution of a program of the lab, which finds itself in its
    own directory, under another name."""
    real, replacement = (program.with_name(f"{program.name}.{kind}") for kind in ("real", "sh"))
    for file in (real, replacement):
        file.unlink(missing_ok=True)
    real.hardlink_to(program)
    replacement.write_text(f'#!/bin/sh\n{script}\nexec {real} "$@"\n')
    replacement.chmod(0o755)
    try:
        with _mounted(node, "--bind", replacement, program):
            yield
    finally:
        real.unlink()
        replacement.unlink()


@contextmanager
def _replaced(node: Node, program: Path, folder: Path, script: str) -> Iterator[None]:
    """A shell script in a program's place, of which there is a copy in ``folder`` meanwhile.

    A copy, for runc makes an overlay of the folder that it lies in.
    """
    replacement, real = folder / "replacement", folder / program.name
    node.path(folder).mkdir()
    shutil.copy2(program, node.path(real))
    node.path(replacement).write_text(f"#!/bin/sh\n{script}\n")
    node.path(replacement).chmod(0o755)
    try:
        with _mounted(node, "--bind", replacement, program):
            yield
    finally:
        remove(node.path(folder))


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
