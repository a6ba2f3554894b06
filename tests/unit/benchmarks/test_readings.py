"""What benchmarks read out of logs and lists of processes."""

from __future__ import annotations

import pytest

from benchmarks import client, memory, scaledown, wake
from lab.steps import LabError

_LOG = """\
level=info msg="abc: asleep after 146 ms, 2.3 MiB" id=9
level=info msg="abc: awake as process 7 after 61 ms" id=9
level=info msg="def: asleep after 20 ms, 2.3 MiB" id=9
level=info msg="abc: asleep after 48 ms, 2.3 MiB" id=9
"""


def test_sleeps_are_those_of_the_container() -> None:
    assert scaledown.logged_ns(_LOG, "abc") == [146_000_000, 48_000_000]


def test_memory_is_summed_by_name_and_divided_by_pods() -> None:
    names = {1: "shim", 2: "pause", 3: "shim"}
    assert memory.per_name(names, names.__getitem__, lambda pid: pid * 10, 2) == {
        "pause": 10,
        "shim": 20,
    }


def _answer(boot_id: str, count: int) -> client.Answer:
    return client.Answer(0, 1, f'{{"boot_id": "{boot_id}", "count": {count}}}'.encode())


def test_oracle_accepts_one_boot_that_counts_on() -> None:
    oracle = wake.Oracle()
    for count in (1, 2, 3):
        oracle.check(_answer("a", count))


@pytest.mark.parametrize("second", [("b", 1), ("b", 2), ("a", 1), ("a", 3)])
def test_oracle_refuses_lost_doubled_and_missed(second: tuple[str, int]) -> None:
    oracle = wake.Oracle()
    oracle.check(_answer("a", 1))
    with pytest.raises(LabError, match="memory was lost"):
        oracle.check(_answer(*second))
