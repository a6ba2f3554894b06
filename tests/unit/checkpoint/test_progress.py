"""A restore may take as long as it gets on, up to a bound; one that hangs, or spins, may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zeropod.checkpoint import progress
from zeropod.checkpoint.progress import Patience


def test_without_progress_it_runs_out_after_the_deadline() -> None:
    patience = Patience(10, now=100)
    assert not patience.spent(101, "log")  # the first look is progress: it has begun
    assert not patience.spent(110.9, "log")
    assert patience.spent(111, "log")


def test_it_counts_from_the_last_progress() -> None:
    patience = Patience(10, now=0)
    for now in range(9, 100, 9):
        assert not patience.spent(now, now)
    assert not patience.spent(108, 99)
    assert patience.spent(109, 99)


def test_a_shim_that_was_not_run_itself_sees_first_and_judges_then() -> None:
    patience = Patience(10, now=0)
    assert not patience.spent(1, "log")
    assert not patience.spent(60, "a longer log")


def test_it_runs_out_in_the_end() -> None:
    patience = Patience(10, now=0)
    assert not any(patience.spent(now, now) for now in range(130))
    assert patience.spent(130, 130)


@pytest.mark.parametrize("seconds", [1.0, 10.0, 74.0])
def test_looks_are_much_closer_than_the_deadline(seconds: float) -> None:
    assert 0 < Patience(seconds, 0).interval_s <= seconds / 4


def test_reading_is_progress(tmp_path: Path) -> None:
    image = tmp_path / "core-1.img"
    image.write_bytes(b"x" * 100)
    before = progress.bytes_read([os.getpid()])
    image.read_bytes()
    assert progress.bytes_read([os.getpid()]) >= before + 100


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
        before = progress.bytes_read([pid])
        assert before > 0
        for _ in range(10_000):
            os.read(ready, 1)
        assert progress.bytes_read([pid]) == before
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


def test_processes_that_are_gone_are_no_error() -> None:
    assert progress.bytes_read([2**22 + 1]) == 0
