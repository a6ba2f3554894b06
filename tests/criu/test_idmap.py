"""Mounts with other owners, made by the kernel; containerd/test_userns.py has the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropod.errors import RuntimeFailed
from zeropod.oci.mounts import Mount, mount_all, mounts_below, unmount_all

_IDS = ("uidmap=0:100000:10,10:300000:10", "gidmap=0:200000:65536")


def _make(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).mkdir()


def _owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def test_the_layers_of_an_overlay(tmp_path: Path) -> None:
    _make(tmp_path, "one", "two", "upper", "work", "root")
    (tmp_path / "one/a").touch()
    (tmp_path / "two/b").touch()
    options = (
        f"lowerdir={tmp_path}/one:{tmp_path}/two",
        f"upperdir={tmp_path}/upper",
        f"workdir={tmp_path}/work",
        *_IDS,
    )
    mount_all([Mount("overlay", "overlay", options)], tmp_path / "root")
    try:
        assert {_owner(tmp_path / "root" / name) for name in "ab"} == {(100_000, 200_000)}
        assert {_owner(tmp_path / "one/a"), _owner(tmp_path / "two/b")} == {(0, 0)}
        assert mounts_below(tmp_path) == [tmp_path / "root"]
    finally:
        unmount_all(tmp_path / "root")
    assert mounts_below(tmp_path) == []


def test_a_bind_mount(tmp_path: Path) -> None:
    _make(tmp_path, "source", "root")
    (tmp_path / "source/a").touch()
    mount_all([Mount("bind", f"{tmp_path}/source", ("rbind", *_IDS))], tmp_path / "root")
    try:
        assert _owner(tmp_path / "root/a") == (100_000, 200_000)
        assert mounts_below(tmp_path) == [tmp_path / "root"]
    finally:
        unmount_all(tmp_path / "root")


@pytest.mark.parametrize("ids", ["nonsense", "0:1:0", "0:1"])
def test_a_mapping_that_cannot_be_leaves_nothing(tmp_path: Path, ids: str) -> None:
    _make(tmp_path, "source", "root")
    bind = Mount("bind", f"{tmp_path}/source", (f"uidmap={ids}", f"gidmap={ids}", "rbind"))
    with pytest.raises(RuntimeFailed, match="Invalid argument"):
        mount_all([bind], tmp_path / "root")
    assert mounts_below(tmp_path) == []


def test_a_layer_that_is_missing_leaves_nothing(tmp_path: Path) -> None:
    _make(tmp_path, "one", "root")
    overlay = Mount("overlay", "overlay", (f"lowerdir={tmp_path}/one:{tmp_path}/none", *_IDS))
    with pytest.raises(RuntimeFailed, match="No such file"):
        mount_all([overlay], tmp_path / "root")
    assert mounts_below(tmp_path) == []
