"""A restore may take as long as it gets on, up to a bound; one that hangs, or spins, may not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from lab import waiting
from zeropod.checkpoint import progress
from zeropod.checkpoint.progress import Look, Patience


def spent_at(patience: Patience, looks: Iterable[tuple[float, Look]]) -> float | None:
    """The time of the look at which it has run out."""
    return next((now for now, look in looks if patience.spent(now, look)), None)


def test_without_progress_it_runs_out_after_the_deadline() -> None:
    patience = Patience(10, now=100)  # the first look is progress: it has begun
    assert spent_at(patience, ((now, Look(5)) for now in range(101, 130))) == 111


def test_it_counts_from_the_last_progress() -> None:
    patience = Patience(10, now=0)
    assert spent_at(patience, ((now, Look(min(now, 99))) for now in range(130))) == 109


def test_what_a_shim_does_not_see_for_it_is_not_run_does_not_count() -> None:
    patience = Patience(10, now=0)
    assert not patience.spent(1, Look(5))
    assert not patience.spent(60, Look(5))
    assert spent_at(patience, ((60 + now, Look(5)) for now in range(1, 30))) == 69


def test_the_time_in_which_they_wait_for_a_processor_does_not_count() -> None:
    patience = Patience(10, now=0)
    starved = ((now, Look(5, delayed_ns=min(now, 50) * 900_000_000)) for now in range(1, 129))
    assert spent_at(patience, starved) == 56  # 49 s, of which they ran 4.9


def test_the_time_in_which_the_kernel_lets_them_wait_does_not_count() -> None:
    patience = Patience(10, now=0)
    looks = ((now, Look(5, blocked=now <= 40)) for now in range(1, 129))
    assert spent_at(patience, looks) == 50


def test_it_runs_out_in_the_end() -> None:
    for look in (Look, lambda _: Look(5, blocked=True)):
        patience = Patience(10, now=0)
        assert spent_at(patience, ((now, look(now)) for now in range(200))) == 130


@pytest.mark.parametrize("seconds", [1.0, 10.0, 74.0])
def test_looks_are_much_closer_than_the_deadline(seconds: float) -> None:
    assert 0 < Patience(seconds, 0).interval_s <= seconds / 4


def test_reading_is_progress(tmp_path: Path) -> None:
    image = tmp_path / "core-1.img"
    image.write_bytes(b"x" * 100)
    before = progress.look([os.getpid()]).read
    image.read_bytes()
    assert progress.look([os.getpid()]).read >= before + 100


def test_to_spin_and_to_write_is_none(tmp_path: Path) -> None:
    """What CRIU's restorer does at the end of pages that are too short, and its log."""
    pages, log = tmp_path / "pages-1.img", tmp_path / "restore.log"
    pages.touch()
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        image = os.open(pages, os.O_RDONLY)
        Path("/proc/self/status").read_bytes()
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.write(told, b".")
        while True:
            assert os.preadv(image, [bytearray(10)], 0) == 0
            os.pwrite(output, b"`- returned 0\n", 0)
            os.write(told, b".")
    try:
        os.read(ready, 1)
        before = progress.look([pid]).read
        assert before > 0
        for _ in range(10_000):
            os.read(ready, 1)
        assert progress.look([pid]).read == before
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


def test_processes_that_are_gone_are_no_error() -> None:
    assert progress.look([2**22 + 1]) == Look(0)
    assert progress.children(2**22 + 1) == set()


def test_who_shares_a_processor_waits_for_it() -> None:
    one = [min(os.sched_getaffinity(0))]
    pids = []
    for _ in range(2):
        if not (pid := os.fork()):
            os.sched_setaffinity(0, one)
            while True:
                pass
        pids.append(pid)
    try:
        assert set(pids) <= progress.children(os.getpid())
        for pid in pids:
            waiting.until("a delay", lambda pid=pid: progress.look([pid]).delayed_ns > 10**8)
    finally:
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
