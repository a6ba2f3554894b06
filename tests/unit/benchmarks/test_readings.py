"""What benchmarks read out of logs and lists of processes."""

from __future__ import annotations

import os
import threading
import time

import pytest

from benchmarks import client, idle, memory, scaledown, wake
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


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        (2_310_000, "growth over the last 80 wake-ups: +5.0%, bound 5%: not met"),
        (2_300_000, "growth over the last 80 wake-ups: +4.5%, bound 5%: met"),
        (2_100_000, "growth over the last 80 wake-ups: -4.5%, bound 5%: met"),
    ],
)
def test_growth_is_counted_from_the_settled(last: float, verdict: str) -> None:
    """What comes in the first wake-ups is in the bound of the whole."""
    totals = {"asleep": 1_900_000.0, "after 20 wake-ups": 2_200_000.0, "after 100 wake-ups": last}
    whole, growth = memory.verdicts(totals, 100)
    assert growth == verdict
    assert whole.endswith("bound 2.5 MB: met")


def test_the_largest_is_held_against_the_bound() -> None:
    (whole,) = memory.verdicts({"asleep": 2_000_000, "after 5 wake-ups": 2_500_001}, 5)
    assert whole.endswith("not met")


@pytest.mark.parametrize(
    ("body", "parked"),
    [
        (b'{"client": "10.88.0.2"}', False),
        (b"nginx bench-1 10.88.0.2\n", False),
        (b"nginx bench-1 10.88.0.7\n", True),
    ],
)
def test_the_way_of_a_waking_request_is_seen(body: bytes, parked: bool) -> None:
    """Spliced, the app sees the address that was asked for: its own."""
    answer = client.Answer(0, 1, body)
    wake.check_way(answer, "10.88.0.2", parked)
    with pytest.raises(LabError, match="spliced" if not parked else "parked"):
        wake.check_way(answer, "10.88.0.2", not parked)


def test_time_of_all_threads_counts() -> None:
    before = idle.run_ns(os.getpid())
    burnt, read = threading.Event(), threading.Event()

    def work() -> None:
        while time.thread_time_ns() < 50_000_000:
            pass
        burnt.set()
        read.wait()

    thread = threading.Thread(target=work)
    thread.start()
    burnt.wait()
    spent = idle.run_ns(os.getpid()) - before
    read.set()
    thread.join()
    assert spent >= 50_000_000


def test_time_of_those_that_ended_is_left_out() -> None:
    assert idle.spent_ms({1: 5_000_000, 2: 7}, {1: 8_000_000, 3: 9}) == {1: 3.0}


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
