"""No instruction of an app runs twice, whatever becomes of a restore.

The oracle is a thread of the app that makes the files 0, 1, 2, … exclusively, one every 2 ms:
memory that is restored a second time makes files that are there already. Faults are put in CRIU's
place while the app is asleep.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from lab import faults
from lab.faults import REAL_CRIU
from lab.node import Node
from lab.pods import Pod

from .conftest import Log, MakePod
from .test_sleep import FAST, keeps

_RUN = f'exec {REAL_CRIU} "$@"'
_ONCE = f"if mkdir {REAL_CRIU.parent}/once; then exit 1; fi"
# The runtime asks CRIU for its version first, and then moves the second one into the cgroup.
_RUN_AND_KILL_RUNTIME = f"""
if mkdir {REAL_CRIU.parent}/$PPID; then {_RUN}; fi
until grep -q kubepods /proc/self/cgroup; do :; done
{REAL_CRIU} "$@"
kill -9 $PPID
"""
# The killer closes its copy of CRIU's socket to the runtime.
_RUN_FOR = f'(eval "exec $2>&-"; sleep {{seconds:.3f}}; kill -9 $$) & {_RUN}'


class Oracle:
    """A pod and its ticks."""

    def __init__(self, pod: Pod, ticks: Path) -> None:
        self.pod = pod
        self.ticks = ticks
        (self.app,) = pod.containers

    def asleep(self) -> dict[str, object]:
        """Ask once more, and wait until it sleeps. Returns the answer."""
        said = self.pod.get()
        self.app.wait_asleep()
        return said

    def check(self) -> None:
        assert not (self.ticks / "doubled").exists(), "an instruction ran twice"


MakeOracle = Callable[..., Oracle]


@pytest.fixture
def make_oracle(make_pod: MakePod, tmp_path: Path) -> MakeOracle:
    def make(**annotations: str) -> Oracle:
        given = {**FAST, **{key.replace("_", "-"): value for key, value in annotations.items()}}
        pod = make_pod("stateful", given, env={"TICKS": "/ticks"}, mounts={"/ticks": tmp_path})
        return Oracle(pod, tmp_path)

    return make


def test_a_failure_before_anything_ran_is_tried_again(
    no_leaks: None, node: Node, make_oracle: MakeOracle
) -> None:
    oracle = make_oracle()
    before = oracle.asleep()
    with faults.criu_replaced(node, f"{_ONCE}; {_RUN}"):
        assert keeps(before, oracle.pod.get())
    oracle.asleep()
    oracle.pod.get()
    oracle.check()


_FAULTS = {
    "CRIU does not start": "exit 1",
    "CRIU fails with everything restored": f"CRIU_FAULT=6 {_RUN}",
    "the runtime is killed when the app runs": _RUN_AND_KILL_RUNTIME,
}


@pytest.mark.parametrize("script", _FAULTS.values(), ids=_FAULTS)
def test_a_restore_that_fails_for_good_begins_anew(
    no_leaks: None, node: Node, make_oracle: MakeOracle, log: Log, script: str
) -> None:
    oracle = make_oracle()
    before = oracle.asleep()
    with faults.criu_replaced(node, script):
        first = None  # it may reach an app that runs, and end with it
        with suppress(ConnectionError) if script is _RUN_AND_KILL_RUNTIME else nullcontext():
            first = oracle.pod.get()
        log.wait_for(f"{oracle.app.id}: started afresh")
        oracle.app.exec("true")
    fresh = oracle.asleep()
    assert fresh["boot_id"] != before["boot_id"]
    assert first is None or first["boot_id"] in (before["boot_id"], fresh["boot_id"])
    assert keeps(fresh, oracle.pod.get())
    oracle.check()


@pytest.mark.parametrize("script", _FAULTS.values(), ids=_FAULTS)
def test_a_restore_that_fails_for_good_ends_the_container(
    no_leaks: None, node: Node, make_oracle: MakeOracle, script: str
) -> None:
    oracle = make_oracle(restore_failure="fail")
    oracle.asleep()
    with faults.criu_replaced(node, script):
        with suppress(ConnectionError):  # answered only where the app ran before
            oracle.pod.get()
        assert oracle.app.wait_exited() == 128
    assert not oracle.app.live_pids()
    oracle.check()


def test_criu_killed_in_mid_restore(no_leaks: None, node: Node, make_oracle: MakeOracle) -> None:
    """What it has made by then keeps the runtime waiting: up to the deadline of 10 s."""
    oracle = make_oracle()
    for seconds in (0.004, 0.02, 0.035):
        before = oracle.asleep()
        with faults.criu_replaced(node, _RUN_FOR.format(seconds=seconds)):
            keeps(before, oracle.pod.get())
        oracle.check()
