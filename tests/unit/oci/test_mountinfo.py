"""Lines of /proc/<pid>/mountinfo, and that they are read one at a time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from zeropod.oci import mountinfo, mounts
from zeropod.oci.mountinfo import MountEntry

_V1 = (
    rb"32 28 0:26 /docker/c1 /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:11 - "
    rb"cgroup cpu rw,cpu,cpuacct"
)
_ODD = rb"90 1 8:1 /a\040b\134040 /mnt/t\011a\012b rw - fuse.x\040y /dev/s\040s rw,uid=0"
_PLAIN = rb"25 30 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw"
_LATIN = b"1 2 0:5 / /n\xff rw - tmpfs none rw"


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (_V1, (32, "0:26", "/docker/c1", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")),
        (_ODD, (90, "8:1", r"/a b\040", "/mnt/t\ta\nb", r"fuse.x\040y", "rw,uid=0")),
        (_PLAIN, (25, "0:23", "/", "/sys", "sysfs", "rw")),
        (_LATIN, (1, "0:5", "/", "/n\udcff", "tmpfs", "rw")),
    ],
)
def test_a_line(line: bytes, entry: tuple[int, str, str, str, str, str]) -> None:
    assert mountinfo.parse(line + b"\n") == MountEntry(*entry)


def test_the_own_mounts_by_type() -> None:
    everything = list(mountinfo.entries())
    assert any(entry.point == "/proc" and entry.type == "proc" for entry in everything)
    procs = list(mountinfo.entries(type="proc"))
    assert procs == [entry for entry in everything if entry.type.startswith("proc")]


def test_who_is_gone_has_none() -> None:
    with pytest.raises(FileNotFoundError):
        next(mountinfo.entries(2**22 + 1))


def test_a_large_file_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 mounts, as of a node with some hundred pods, of which one is looked for."""
    file = tmp_path / "mountinfo"
    line = "%d 1 0:%d / /run/containerd/io.containerd.runtime.v2.task/k8s.io/%064x/rootfs rw - %s\n"
    with file.open("w") as out:
        for number in range(5000):
            out.write(line % (number, number, number, f"overlay overlay rw,lowerdir={'x' * 200}"))
        out.write("7 1 0:9 / /wanted/below rw - tmpfs none rw\n")
    monkeypatch.setattr(mountinfo, "_path", lambda pid: file)
    tracemalloc.start()
    try:
        found = mounts.mounts_below(Path("/wanted"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [Path("/wanted/below")]
    assert peak < 200_000 < file.stat().st_size / 5


def test_mounts_below_come_deepest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mountinfo"
    points = ["/a/b", "/a", "/a/b/c", "/ab", "/a/b", r"/a/d\040d/e"]
    file.write_text("".join(f"1 2 0:5 / {point} rw - tmpfs none rw\n" for point in points))
    monkeypatch.setattr(mountinfo, "_path", lambda pid: file)
    found = mounts.mounts_below(Path("/a"))
    assert found == [Path("/a/d d/e"), Path("/a/b/c"), Path("/a/b"), Path("/a/b")]
