"""What is held of this very process, below a mount that config.json calls a bind."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropod.checkpoint import held
from zeropod.checkpoint.held import Held
from zeropod.oci.bundle import Bundle


@pytest.fixture
def instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's limit: four."""
    file = tmp_path / "max_user_instances"
    file.write_text("4\n")
    monkeypatch.setattr(held, "_INSTANCES", file)
    return file


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A file that this process has open."""
    path = tmp_path / "log"
    with path.open("w"):
        yield path


def open_files() -> Counter[str]:
    """What the descriptors of this process are."""
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the directory itself
            found[str(link.readlink())] += 1
    return found


def take(tmp_path: Path, sleepers: int) -> Held:
    """With so many containers on the node that have slept. Every mount here counts as a bind."""
    for number in range(sleepers):
        (tmp_path / "i" / f"ns.c{number}" / "1" / "images").mkdir(parents=True)
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    point = max((p for p in points if tmp_path.is_relative_to(p)), key=len)
    mounts = [{"destination": point, "type": "bind", "source": point}]
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "/"}, "mounts": mounts}))
    bundle, pid, own = Bundle(str(tmp_path)), os.getpid(), tmp_path / "i" / "ns.c0"
    return Held.take(bundle, [pid], pid, own / "1" / "images", own / "mounts")


@pytest.mark.parametrize(("sleepers", "watches"), [(2, True), (3, False)])
def test_half_of_the_inotify_instances_are_for_others(
    tmp_path: Path, instances: Path, log: Path, sleepers: int, watches: bool
) -> None:
    before = open_files()
    taken = take(tmp_path, sleepers)
    more = open_files() - before
    assert more["anon_inode:inotify"] == watches
    assert more[str(log)] == 1
    assert (str(log) in taken._changes().loose) is watches
    taken.distrust()
    assert str(log) in taken._changes().loose
    taken.close()
    assert open_files() == before
