"""Who is found in a container: real processes, no root needed."""

from __future__ import annotations

import os
import subprocess
from array import array
from pathlib import Path

from zeropod.checkpoint import census, debris
from zeropod.checkpoint.cgroup import CgroupDir
from zeropod.checkpoint.engine import _cgroup_name
from zeropod.container.disposition import Dispositions, Effect


def test_tree_and_strangers(tmp_path: Path) -> None:
    shell = "sleep 60 & echo $!; exec cat"
    with (
        subprocess.Popen(["sh", "-c", shell], stdin=-1, stdout=-1, text=True) as init,
        subprocess.Popen(["cat"], stdin=-1) as other,
    ):
        assert init.stdout is not None
        child = int(init.stdout.readline())
        below = tmp_path / "below"
        below.mkdir()
        (tmp_path / "cgroup.procs").write_text(f"{init.pid}\n{child}\n")
        (below / "cgroup.procs").write_text(f"{other.pid}\n")
        found = census.take(init.pid, (CgroupDir(tmp_path, False),), own_pid_namespace=False)
        assert {member.pid for member in found.tree} == {init.pid, child}
        assert [str(member) for member in found.strangers] == [f"cat (pid {other.pid})"]
        assert found.memory_bytes() > 0
        init.kill()
        other.kill()
        os.kill(child, 9)


def test_everybody_of_the_pid_namespace_counts() -> None:
    with subprocess.Popen(["cat"], stdin=-1) as init:
        found = census.take(init.pid, (), own_pid_namespace=True)
        assert os.getpid() in {member.pid for member in found.strangers}
        init.kill()


def test_a_name_may_be_any_bytes() -> None:
    """The kernel cuts one after 15, in the middle of a character where that is the 15th."""
    shell = r"printf 'caf\303' > /proc/self/comm; echo; read x"
    with subprocess.Popen(["sh", "-c", shell], stdin=-1, stdout=-1) as init:
        assert init.stdout is not None
        init.stdout.readline()
        found = census.take(init.pid, (), own_pid_namespace=False)
        assert [member.name for member in found.tree] == ["caf\ufffd"]
        assert found.memory_bytes() > 0
        assert Dispositions.of(init.pid).effect(9) is Effect.ENDS
        debris.abandoned_mount_trees()
        init.kill()


def test_name_of_the_cgroup() -> None:
    assert _cgroup_name("c1", "/k8s.io/c1") == "c1"
    assert _cgroup_name("c1", "kubepods-pod1.slice:cri-containerd:c1") == "cri-containerd-c1.scope"
    assert _cgroup_name("c1", "") == "c1"


def test_descendants_come_in_any_order() -> None:
    """Pids begin anew after the largest, so that children may be listed before their parents."""
    parents = array("i", [*(2, 9), *(3, 2), *(5, 1), *(7, 5), *(9, 8), *(8, 1)])
    assert census._descendants(8, parents) == {8, 9, 2, 3}
    assert census._descendants(4, parents) == {4}


def test_a_name_is_what_the_process_made_of_it() -> None:
    assert census._name(b"7 (a) (b c) S 1 7") == "a) (b c"
    assert census._name(b"7 (\xff) S 1 7") == "\ufffd"
