"""The node's interpreter keeps the zygote's memory shared: fewer pages of a child are its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from lab import paths, processes, waiting
from lab.node import Node
from tests.containerd.conftest import MakePod
from tests.unit.shim import test_sharing as everywhere

_PYTHON = [str(paths.VENV / "bin/python"), "-I"]

_BOUND = 3_200_000

_SCRIPT = """
import gc, os, sys
import zeropod.shim.assemble
from zeropod.checkpoint import census, criu
from zeropod.config import Settings
from zeropod.oci import cgroups
from zeropod.shim import sharing
gc.disable()
if sys.argv[1] == "shared":
    sharing.share()
else:
    gc.freeze()
if os.fork() == 0:
    gc.enable()
    for round in range(10):
        Settings.from_annotations({"zeropod.ctrox.dev/ports-map": "a=80"}, container_name="a")
        cgroups.Cgroups.of(os.getpid())
        census.take(os.getpid(), (), own_pid_namespace=True)
        criu.find()
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        print(next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")))
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


def _private_kib(kind: str) -> int:
    argv = [*_PYTHON, "-c", _SCRIPT, kind]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_child_shares_its_parents_memory(node: Node) -> None:
    """By pages, not by time. Without immortal objects (Python 3.11) it would be the same."""
    unshared, shared = _private_kib("plain"), _private_kib("shared")
    assert shared < unshared / 2, f"{shared} KiB with sharing, {unshared} KiB without"


def test_a_shim_asleep_has_given_back_what_it_used(make_pod: MakePod) -> None:
    """Far below what it has without sharing (7 MB); docs/performance.md has the figures."""
    pod = make_pod("nginx", {"scaledown-duration": "1s"})
    (app,) = pod.containers
    shim = pod.shim_pid()
    for _ in range(3):
        app.wait_asleep()
        assert pod.request(port=80).status == 200
    app.wait_asleep()

    def is_small() -> bool:
        return processes.written_bytes(shim) < _BOUND

    waiting.until(f"a shim below {_BOUND} bytes", is_small, 60)


@pytest.mark.parametrize(
    "test", [found for name, found in vars(everywhere).items() if name.startswith("test_")]
)
def test_nothing_else_changes(
    node: Node, monkeypatch: pytest.MonkeyPatch, test: Callable[[], None]
) -> None:
    monkeypatch.setattr(everywhere, "INTERPRETER", _PYTHON)
    test()
