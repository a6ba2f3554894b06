"""What a container has used, over sleeps: trees of files in place of cgroups, v1 and v2."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from zeropod.container.stats import Meter
from zeropod.oci.cgroups import Cgroups

_UNLIMITED = 2**64 - 1


class Tree:
    """One container's cgroup; `renew` is what a sleep and a restore do to it."""

    def __init__(self, root: Path, *, v2: bool) -> None:
        self.v2 = v2
        self.path = root / "c1"
        self.lives = 0
        self.renew()

    def renew(self) -> None:
        self.remove()
        self.path.mkdir()
        self.used(cpu_us=0, faults=0)

    def remove(self) -> None:
        if self.path.exists():  # away, not gone: its inode shall not be given out again
            self.lives += 1
            self.path.rename(self.path.with_name(f"life-{self.lives}"))

    def used(self, *, cpu_us: int, faults: int = 0, memory: int = 1 << 20) -> None:
        """Two thirds of the CPU time were the app's own, the rest the kernel's."""
        user, kernel = cpu_us * 2 // 3, cpu_us - cpu_us * 2 // 3
        if self.v2:
            files = {
                "cpu.stat": f"usage_usec {cpu_us}\nuser_usec {user}\nsystem_usec {kernel}\n",
                "memory.stat": f"anon {memory}\nfile 4\npgfault {faults}\npgmajfault 1\n",
                "memory.current": f"{memory}\n",
                "memory.max": "max\n",
                "pids.current": "3\n",
                "pids.max": "100\n",
            }
        else:
            files = {
                "cpuacct.usage": f"{cpu_us}000\n",
                "cpuacct.usage_user": f"{user}000\n",
                "cpuacct.usage_sys": f"{kernel}000\n",
                "memory.stat": f"total_rss {memory}\ntotal_pgfault {faults}\ntotal_pgmajfault 1\n",
                "memory.usage_in_bytes": f"{memory}\n",
                "memory.limit_in_bytes": "536870912\n",
                "pids.current": "3\n",
                "pids.max": "max\n",
            }
        for name, text in files.items():
            (self.path / name).write_text(text)

    def of(self, pid: int) -> Cgroups:
        if not pid:
            raise FileNotFoundError
        if self.v2:
            return Cgroups(self.path, {})
        return Cgroups(None, dict.fromkeys(("cpu", "cpuacct", "memory", "pids"), self.path))


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return Tree(tmp_path, v2=request.param)


@pytest.fixture
def meter(tree: Tree) -> Meter:
    made = Meter(tree.of)
    made.begin(1)
    return made


def sleep(meter: Meter, tree: Tree) -> None:
    meter.read()
    tree.remove()
    meter.end()


def wake(meter: Meter, tree: Tree) -> None:
    tree.renew()
    meter.begin(2)


def test_what_the_files_say(meter: Meter, tree: Tree) -> None:
    tree.used(cpu_us=300, faults=7, memory=5 << 20)
    usage = meter.read()
    assert (usage.cpu_ns, usage.cpu_user_ns, usage.cpu_kernel_ns) == (300_000, 200_000, 100_000)
    assert (usage.memory, usage.anon, usage.pids) == (5 << 20, 5 << 20, 3)
    assert (usage.page_faults, usage.major_faults, usage.v2) == (7, 1, tree.v2)
    assert usage.memory_limit == (_UNLIMITED if tree.v2 else 512 << 20)
    assert usage.pids_limit == (100 if tree.v2 else _UNLIMITED)


def test_counters_go_on_over_many_sleeps(meter: Meter, tree: Tree) -> None:
    """Each life uses more than the one before, so that a base dropped too early would show."""
    total = 0
    for life in range(1, 6):
        for _ in range(3):
            tree.used(cpu_us=(cpu := 900 * life), faults=10 * life)
            usage = meter.read()
            assert usage.cpu_ns == (total + cpu) * 1000
            assert usage.cpu_user_ns + usage.cpu_kernel_ns == usage.cpu_ns
        total += cpu
        sleep(meter, tree)
        assert meter.read().cpu_ns == total * 1000
        wake(meter, tree)
        assert meter.read().cpu_ns == total * 1000
    assert usage.page_faults == 10 * (1 + 2 + 3 + 4 + 5)


def test_a_life_without_a_look_at_it_loses_only_what_nobody_saw(meter: Meter, tree: Tree) -> None:
    tree.used(cpu_us=900)
    tree.remove()
    meter.end()
    wake(meter, tree)
    tree.used(cpu_us=30)
    assert meter.read().cpu_ns == 30_000


def test_a_dump_that_failed_counts_nothing_twice(meter: Meter, tree: Tree) -> None:
    tree.used(cpu_us=900)
    meter.read()
    tree.used(cpu_us=1200)
    assert meter.read().cpu_ns == 1_200_000


def test_the_same_cgroup_again_counts_once(meter: Meter, tree: Tree) -> None:
    """A cgroup that outlived its processes: the new life goes on in it."""
    tree.used(cpu_us=900)
    meter.read()
    meter.end()
    meter.begin(2)
    tree.used(cpu_us=1000)
    assert meter.read().cpu_ns == 1_000_000


def test_asleep_the_figures_are_small_but_not_zero(meter: Meter, tree: Tree) -> None:
    tree.used(cpu_us=900)
    sleep(meter, tree)
    usage = meter.read()
    assert meter.cgroups is None
    assert (usage.cpu_ns, usage.memory, usage.anon, usage.pids) == (900_000, 4096, 4096, 0)
    assert usage.memory - usage.inactive_file > 0  # the working set, as metrics-server has it


def test_before_it_has_used_anything(tree: Tree) -> None:
    assert 0 < Meter(tree.of).read().cpu_ns < 1000


def test_a_process_that_is_gone_changes_nothing(meter: Meter, tree: Tree) -> None:
    tree.used(cpu_us=900)
    meter.begin(0)
    assert meter.read().cpu_ns == 900_000


def test_no_counter_ever_goes_backwards(meter: Meter, tree: Tree) -> None:
    """Whatever the kernel says, in whatever order a life is read, ended and begun."""
    tree.used(cpu_us=900, faults=9)
    before = meter.read()
    tree.used(cpu_us=3, faults=1)
    assert meter.read().cpu_ns == before.cpu_ns
    assert meter.read().page_faults == before.page_faults


def test_a_cgroup_that_is_removed_while_it_is_read(
    meter: Meter, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd removes a scope in the moment its last process ends; reads say ENODEV then."""
    tree.used(cpu_us=900)
    meter.read()

    def gone(path: Path) -> str:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", gone)
        assert meter.read().cpu_ns == 900_000


def test_the_cgroups_of_a_process_that_is_ending_are_not_taken() -> None:
    """v1 shows it at the root of every hierarchy: its usage would be the whole node's."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        meter = Meter()
        meter.begin(pid)
        assert meter.cgroups is None
    finally:
        os.waitpid(pid, 0)


def test_a_live_process_is_metered() -> None:
    meter = Meter()
    meter.begin(os.getpid())
    assert meter.cgroups is not None
    first = meter.read().cpu_ns
    assert first > 1
    sum(range(1_000_000))
    assert meter.read().cpu_ns > first
