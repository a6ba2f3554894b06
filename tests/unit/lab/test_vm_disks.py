"""The disks of the virtual machine: one user at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.lock import Lock
from lab.steps import LabError
from lab.vm import disks


def test_a_second_run_leaves_the_disk_of_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "FOLDER", tmp_path)
    first = Lock.take(tmp_path / "lock", "the first")
    (tmp_path / "lab.part").mkdir()
    with pytest.raises(LabError, match="the first"), disks.lab_disk():
        pass
    assert (tmp_path / "lab.part").exists()
    first.release()
