"""The tar that CRIU finds first: the same trees as GNU tar, each reading what the other wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from zeropod.checkpoint import criu

CREATE = [
    "--create",
    "--gzip",
    "--no-unquote",
    "--no-wildcards",
    "--one-file-system",
    "--check-links",
    "--preserve-permissions",
    "--sparse",
    "--numeric-owner",
    "--directory",
]
EXTRACT = ["--extract", "--gzip", "--no-unquote", "--no-wildcards", "--directory"]
MARK = b"ZPT1"


@pytest.fixture
def tars() -> dict[str, str]:
    ours = shutil.which("tar", path=criu.environment()["PATH"])
    theirs = shutil.which("tar")
    assert ours and theirs and ours != theirs
    return {"ours": ours, "theirs": theirs}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(os.urandom(70_001))
    (tree / "sub" / "file").chmod(0o4640)
    (tree / "none").touch()
    (tree / "fd").symlink_to("/proc/self/fd")
    os.mkfifo(tree / "fifo", 0o600)
    os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
    os.chown(tree / "null", 5, 6)
    tree.chmod(0o1777)
    os.utime(tree / "sub", (1, 1_000_000))
    return tree


def listing(tree: Path) -> str:
    shape = "%P %y %m %U %G %s %Ts %l\n"
    found = subprocess.check_output(["find", tree, "-printf", shape], text=True)
    return "\n".join(sorted(found.splitlines()))


def copy(tars: dict[str, str], tree: Path, target: Path, writer: str, reader: str) -> bytes:
    archive = target.with_suffix(".tar.gz.img")
    target.mkdir()
    with archive.open("wb") as out:
        subprocess.run(
            [tars[writer], *CREATE, tree, "."], stdout=out, env=criu.environment(), check=True
        )
    with archive.open("rb") as image:
        subprocess.run(
            [tars[reader], *EXTRACT, target], stdin=image, env=criu.environment(), check=True
        )
    return archive.read_bytes()


@pytest.mark.parametrize("writer", ["ours", "theirs"])
@pytest.mark.parametrize("reader", ["ours", "theirs"])
def test_each_reads_the_other(
    tars: dict[str, str], tree: Path, tmp_path: Path, writer: str, reader: str
) -> None:
    data = copy(tars, tree, tmp_path / "copy", writer, reader)
    assert listing(tmp_path / "copy") == listing(tree)
    assert (tmp_path / "copy/sub/file").read_bytes() == (tree / "sub/file").read_bytes()
    assert (MARK in data[:10]) == (writer == "ours")


def _hard_link(tree: Path) -> None:
    os.link(tree / "none", tree / "same")


def _long_name(tree: Path) -> None:
    (tree / ("n" * 200)).touch()


def _large(tree: Path) -> None:
    (tree / "large").write_bytes(bytes(2 << 20))


def _high_uid(tree: Path) -> None:
    os.chown(tree / "none", 3_000_000_000, 0)


@pytest.mark.parametrize("make", [_hard_link, _long_name, _large, _high_uid])
def test_what_is_not_simple_is_left_to_the_real_one(
    tars: dict[str, str], tree: Path, tmp_path: Path, make: object
) -> None:
    make(tree)  # type: ignore[operator]
    data = copy(tars, tree, tmp_path / "copy", "ours", "ours")
    assert MARK not in data[:10]
    assert listing(tmp_path / "copy") == listing(tree)


@pytest.mark.parametrize("harm", [slice(0, 40), slice(0, -1), slice(0, -600)])
def test_a_damaged_archive_is_refused(
    tars: dict[str, str], tree: Path, tmp_path: Path, harm: slice
) -> None:
    data = copy(tars, tree, tmp_path / "copy", "ours", "ours")
    (tmp_path / "fresh").mkdir()
    done = subprocess.run(
        [tars["ours"], *EXTRACT, tmp_path / "fresh"], stdin=_file(tmp_path, data[harm]), check=False
    )
    assert done.returncode != 0


def _file(tmp_path: Path, data: bytes) -> int:
    (tmp_path / "damaged").write_bytes(data)
    return os.open(tmp_path / "damaged", os.O_RDONLY | os.O_CLOEXEC)
