"""The lab's lock: one holder, named to the others, free as soon as the holder is dead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.lock import Lock, holder
from lab.steps import LabError

_HOLD = """
import sys
from pathlib import Path
from lab.lock import Lock
lock = Lock.take(Path(sys.argv[1]), "a long test")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process, which holds the lock ``tmp_path/lock``."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_it(other: subprocess.Popen[str], tmp_path: Path) -> None:
    try:
        with pytest.raises(LabError, match=rf"process {other.pid} \(a long test\) since \d\d:\d\d"):
            Lock.take(tmp_path / "lock", "the second")
        found = holder(tmp_path / "lock")
        assert found is not None
        assert (found.pid, found.command) == (other.pid, "a long test")
    finally:
        _end(other)


def test_a_killed_holder_holds_nothing(other: subprocess.Popen[str], tmp_path: Path) -> None:
    _end(other)
    assert (tmp_path / "lock").exists()
    assert holder(tmp_path / "lock") is None
    Lock.take(tmp_path / "lock", "the next").release()


def test_a_process_that_inherits_the_lock_goes_on_holding_it(tmp_path: Path) -> None:
    lock = Lock.take(tmp_path / "lock", "lab up")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]) as heir:
        lock.write(heir.pid, "lab up")
        lock.release()
        found = holder(tmp_path / "lock")
        assert found is not None
        assert found.pid == heir.pid != os.getpid()
    assert holder(tmp_path / "lock") is None


def test_nobody_holds_a_lock_that_never_was(tmp_path: Path) -> None:
    assert holder(tmp_path / "lock") is None
