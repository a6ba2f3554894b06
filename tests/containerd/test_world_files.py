"""Files below bind mounts change while a container sleeps: it wakes with its memory.

What it sees then is what it would see had it been awake: an open file, a mapping or a watch keeps
the inode that it had, a path shows what is there now.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import waiting

from .conftest import MakePod
from .worldly import Told

OLD, NEW = "old value\n", "a new and longer value\n"


class Volume:
    """A ConfigMap's volume as the kubelet keeps it: swapped by symlink, the old one removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generation = 0
        path.mkdir()
        for name in ("key", "other"):
            (path / name).symlink_to(f"..data/{name}")
        self.update(OLD)

    def update(self, text: str) -> None:
        old = self.path / f"..2026_{self._generation}"
        self._generation += 1
        new = self.path / f"..2026_{self._generation}"
        new.mkdir()
        for name in ("key", "other"):
            (new / name).write_text(text)
        (self.path / "..data_tmp").symlink_to(new.name)
        (self.path / "..data_tmp").rename(self.path / "..data")
        if old.exists():
            shutil.rmtree(old)

    def names(self) -> set[str]:
        return {entry.name for entry in self.path.iterdir()}


Log = Callable[[], str]


def noticed(log: Log, *paths: str) -> None:
    """Wait until the shim has seen that these are gone or moved.

    A name that somebody else has taken in the very moment of the wake-up is opened as it is.
    """

    def all_of_them() -> bool:
        lines = [line for line in log().splitlines() if "gone or moved in its sleep" in line]
        return all(any(path in line for line in lines) for path in paths)

    waiting.until(f"notice of {paths}", all_of_them, 60)


OPEN = """
import ctypes, mmap, os
kept = open("/config/key")
mapped = mmap.mmap(kept.fileno(), 0, prot=mmap.PROT_READ)
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
on_file = libc.inotify_add_watch(watch, b"/config/other", 0xfff)
on_directory = libc.inotify_add_watch(watch, b"/config/..data/", 0xfff)
on_volume = libc.inotify_add_watch(watch, b"/config", 0xfff)
def seen():
    kept.seek(0)
    return kept.read(), mapped[:].decode(), open("/config/key").read()
def events():
    found, data, at = set(), b"", 0
    try:
        data = os.read(watch, 1 << 16)
    except BlockingIOError:
        pass
    while at < len(data):
        watched, mask, _, size = (
            int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4, 8, 12)
        )
        found.add((watched, mask))
        at += 16 + size
    return found
"""
DELETE_SELF, IGNORED = 0x400, 0x8000


@pytest.mark.parametrize("readonly", [True, False], ids=["read-only", "read-write"])
def test_a_config_map_is_swapped(
    no_leaks: None, make_pod: MakePod, tmp_path: Path, readonly: bool
) -> None:
    volume = Volume(tmp_path / "config")
    app = Told(make_pod, {"/config": volume.path}, readonly_mounts=readonly)
    app.do(OPEN)
    assert app.do("seen()") == (OLD, OLD, OLD)
    app.sleep()
    app.do("events()")
    app.sleep()
    volume.update(NEW)
    assert app.do("seen()") == (OLD, OLD, NEW)
    found = app.do("events()")
    for watch in app.do("on_file, on_directory"):
        assert {(watch, DELETE_SELF), (watch, IGNORED)} <= found
    assert volume.names() == {"..2026_2", "..data", "key", "other"}
    app.sleep()
    assert app.do("seen()") == (OLD, OLD, NEW)
    app.sleep()
    volume.update(OLD + NEW)
    assert app.do("seen()") == (OLD, OLD, OLD + NEW)
    assert volume.names() == {"..2026_3", "..data", "key", "other"}


def test_a_config_map_is_swapped_while_the_app_is_awake(
    no_leaks: None, make_pod: MakePod, tmp_path: Path
) -> None:
    volume = Volume(tmp_path / "config")
    app = Told(make_pod, {"/config": volume.path}, readonly_mounts=True)
    app.do(OPEN)
    volume.update(NEW)
    for _ in range(2):
        app.sleep()
        assert app.do("seen()") == (OLD, OLD, NEW)


def test_a_volume_that_changes_often_costs_nothing(
    no_leaks: None, make_pod: MakePod, tmp_path: Path
) -> None:
    """The restore is fitted to what is there when it is asked for, however often that changes."""
    volume = Volume(tmp_path / "config")
    app = Told(make_pod, {"/config": volume.path})
    app.do(OPEN)
    app.sleep()
    for number in range(20):
        volume.update(f"{number}\n")
    assert app.do("seen()") == (OLD, OLD, "19\n")


def test_a_sub_path_keeps_its_file(no_leaks: None, make_pod: MakePod, tmp_path: Path) -> None:
    """A mount of one file: its source is removed, or another one takes its name."""
    gone, replaced, rewritten = (tmp_path / name for name in ("gone", "replaced", "rewritten"))
    for file in (gone, replaced, rewritten):
        file.write_text(OLD)
    app = Told(make_pod, {f"/etc/{file.name}": file for file in (gone, replaced, rewritten)})
    app.do(
        """
        kept = {name: open(f"/etc/{name}") for name in ("gone", "replaced", "rewritten")}
        def seen(name):
            kept[name].seek(0)
            return kept[name].read(), open(f"/etc/{name}").read()
        """
    )
    app.sleep()
    gone.unlink()
    (tmp_path / "fresh").write_text(NEW)
    (tmp_path / "fresh").rename(replaced)
    rewritten.write_text(NEW)
    for _ in range(2):
        assert app.do("seen('gone')") == (OLD, OLD)
        assert app.do("seen('replaced')") == (OLD, OLD)
        assert app.do("seen('rewritten')") == (NEW, NEW)
        app.sleep()


def test_a_host_path_is_made_anew(no_leaks: None, make_pod: MakePod, tmp_path: Path) -> None:
    data = tmp_path / "data"

    def make(text: str) -> None:
        (data / "sub" / "deep").mkdir(parents=True)
        (data / "sub" / "file").write_text(text)

    make(OLD)
    app = Told(make_pod, {"/data": data})
    app.do(
        """
        import os
        kept = open("/data/sub/file", "r+")
        top, deep = (os.open(f"/data{path}", os.O_RDONLY) for path in ("", "/sub/deep"))
        os.chdir("/data/sub")
        log = open("/data/log", "a")
        def seen():
            kept.seek(0)
            return kept.read(), open("/data/sub/file").read(), sorted(os.listdir(top))
        """
    )
    app.sleep()
    shutil.rmtree(data)
    make(NEW)
    assert app.do("seen()") == (OLD, NEW, ["sub"])
    app.do("log.write('still there'); log.flush(); os.listdir(deep), os.getcwd()")
    app.sleep()
    shutil.rmtree(data)
    data.mkdir()
    assert app.do("kept.seek(0), kept.read(), os.listdir('/data')") == (0, OLD, [])
    assert not list(data.iterdir())


def test_a_host_path_is_removed(no_leaks: None, make_pod: MakePod, tmp_path: Path) -> None:
    """It is as empty as it would be had the container been awake."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text(OLD)
    app = Told(make_pod, {"/data": data})
    app.do("kept = open('/data/file')")
    app.sleep()
    shutil.rmtree(data)
    assert app.do("import os; kept.read(), os.listdir('/data')") == (OLD, [])
    app.sleep()
    assert app.do("kept.seek(0), kept.read(), os.listdir('/data')") == (0, OLD, [])


def test_files_of_a_volume_are_changed_by_others(
    no_leaks: None, make_pod: MakePod, tmp_path: Path, log: Log
) -> None:
    """An emptyDir that a sibling writes into: grown, truncated, other mode, renamed, replaced."""
    names = ("grown", "truncated", "mode", "renamed", "replaced")
    for name in names:
        (tmp_path / name).write_text(OLD)
    app = Told(make_pod, {"/shared": tmp_path})
    app.do(
        f"""
        import os
        kept = {{name: open(f"/shared/{{name}}", "r+") for name in {names}}}
        log = open("/shared/renamed", "a")
        def seen(name):
            kept[name].seek(0)
            return kept[name].read()
        """
    )
    app.sleep()
    with (tmp_path / "grown").open("a") as file:
        file.write(NEW)
    os.truncate(tmp_path / "truncated", 0)
    (tmp_path / "mode").chmod(0o600)
    (tmp_path / "renamed").rename(tmp_path / "renamed.1")
    (tmp_path / "renamed").write_text(NEW)
    (tmp_path / "fresh").write_text(NEW)
    (tmp_path / "fresh").rename(tmp_path / "replaced")
    noticed(log, "/shared/renamed", "/shared/replaced")
    seen = app.do(f"[seen(name) for name in {names}]")
    assert seen == [OLD + NEW, "", OLD, OLD, OLD]
    app.do("log.write('more'); log.flush()")
    assert (tmp_path / "renamed.1").read_text() == OLD + "more"
    assert (tmp_path / "renamed").read_text() == NEW
    app.sleep()
    assert app.do(f"[seen(name) for name in {names}]") == [OLD + NEW, "", OLD, OLD + "more", OLD]


def test_a_large_mapping_is_replaced(
    no_leaks: None, make_pod: MakePod, tmp_path: Path, log: Log
) -> None:
    """As a model would be, by rename: the app computes with the one that it has mapped."""
    model = tmp_path / "model"
    model.write_bytes(os.urandom(24 << 20))
    app = Told(make_pod, {"/models": tmp_path})
    app.do(
        """
        import hashlib, mmap
        mapped = mmap.mmap(open("/models/model", "rb").fileno(), 0, prot=mmap.PROT_READ)
        def digest():
            return hashlib.sha256(mapped).hexdigest()
        """
    )
    before = app.do("digest()")
    app.sleep()
    (tmp_path / "fresh").write_bytes(os.urandom(1 << 20))
    (tmp_path / "fresh").rename(model)
    noticed(log, "/models/model")
    assert app.do("digest()") == before
    app.sleep()
    assert app.do("digest()") == before
    assert {file.name for file in tmp_path.iterdir()} == {"model"}


def test_hosts_and_resolv_conf_are_rewritten(no_leaks: None, make_pod: MakePod) -> None:
    app = Told(make_pod)
    files = {path: _source(app, path) for path in ("/etc/hosts", "/etc/resolv.conf")}
    app.do(f"kept = {{path: open(path) for path in {list(files)}}}")
    app.sleep()
    for source in files.values():
        source.write_text(NEW)
    for path in files:
        assert app.do(f"kept[{path!r}].read(), open({path!r}).read()") == (NEW, NEW)


def _source(app: Told, path: str) -> Path:
    """The node's file that is mounted at ``path``."""
    spec = app.pod.node.cri.info(app.container.id)["runtimeSpec"]
    assert isinstance(spec, dict)
    (source,) = (mount["source"] for mount in spec["mounts"] if mount["destination"] == path)
    return app.pod.node.path(source)
