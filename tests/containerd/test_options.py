"""Runtime options as containerd sends them, in both types: before, during and after a sleep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import cgroups, config, waiting
from lab.node import Node
from lab.pods import Pod
from zeropod.oci.runtime import DEFAULT_ROOT

from .conftest import MakePod
from .test_sleep import FAST, keeps

_HANDLERS = ["zeropod-options", "zeropod-by-path-options"]


@pytest.fixture
def shims(no_leaks: None, node: Node) -> Iterator[Path]:
    """The cgroup of the option ShimCgroup, which the operator makes."""
    made = cgroups.tracking() / "shims"
    made.mkdir()
    yield made
    waiting.until("the end of the shim", lambda: not (made / "cgroup.procs").read_text(), 60)
    made.rmdir()
    folder = node.path(config.OPTIONS_ROOT)  # the runtime makes it and leaves it, empty
    (folder / "k8s.io").rmdir()
    folder.rmdir()


def _keyrings() -> str:
    return Path("/proc/keys").read_text()


def _are_in_force(pod: Pod, shims: Path, *, awake: bool = True) -> None:
    (app,) = pod.containers
    assert pod.node.path(f"{config.OPTIONS_ROOT}/k8s.io/{pod.id}").exists()
    for id in (pod.id, app.id):
        assert not pod.node.path(f"{DEFAULT_ROOT}/k8s.io/{id}").exists()
        assert f"_ses.{id}" not in _keyrings()
    assert str(pod.shim_pid()) in (shims / "cgroup.procs").read_text().split()
    if awake:  # the runtime gives it to the process's user then, uid 0
        assert Path(f"/proc/{app.only_pid()}/fd/1").stat().st_gid == 1001


@pytest.mark.parametrize("handler", _HANDLERS)
def test_options_of_both_types(shims: Path, make_pod: MakePod, handler: str) -> None:
    ordinary = make_pod()
    if f"_ses.{ordinary.containers[0].id}" not in _keyrings():
        pytest.fail("the container that shall have a keyring has none: what is looked for is wrong")
    ordinary.remove()
    pod = make_pod("stateful", FAST, handler=handler)
    (app,) = pod.containers
    before = pod.get()
    _are_in_force(pod, shims)
    for _ in range(2):
        app.wait_asleep()
        _are_in_force(pod, shims, awake=False)
        before, after = pod.get(), before
        assert keeps(after, before)
        _are_in_force(pod, shims)
    pod.remove()
