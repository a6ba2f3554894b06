"""Image directories: modes, manifest, the consumed mark, what a crash leaves."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from zeropod.checkpoint import image
from zeropod.checkpoint.image import ImageDir, ImageStore, sweep
from zeropod.errors import ImageCorrupt


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore.open(str(tmp_path / "i"), "ns.c1")


@pytest.fixture
def images(store: ImageStore) -> ImageDir:
    made = store.new()
    (made.images / "pages-1.img").write_bytes(b"p" * 8192)
    (made.images / "core-1.img").write_bytes(b"core")
    made.seal()
    return made


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_root_reads(tmp_path: Path, store: ImageStore, images: ImageDir) -> None:
    assert mode(tmp_path / "i") & 0o077 == 0o011
    assert mode(store.path) & 0o077 == 0o011
    assert mode(images.path) == mode(images.images) == 0o700
    assert {mode(file) for file in images.images.iterdir()} == {0o600}


def test_whole_images_verify(images: ImageDir) -> None:
    images.verify()
    again = ImageDir(images.path)
    again.verify()
    assert again.size_bytes == images.size_bytes == 8192 + 4


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda d: os.truncate(d / "pages-1.img", 4096), "4096 bytes, 8192 were written"),
        (lambda d: (d / "core-1.img").unlink(), "core-1.img: is missing"),
        (lambda d: (d / "core-1.img").write_bytes(b"xxxx"), "checksum"),
        (lambda d: (d / "pages-1.img").write_bytes(b""), "0 bytes"),
    ],
)
def test_harm_is_found_and_named(images: ImageDir, harm, said: str) -> None:  # type: ignore[no-untyped-def]
    harm(images.images)
    with pytest.raises(ImageCorrupt, match=said):
        images.verify()


def test_what_was_written_ahead_counts(store: ImageStore) -> None:
    made = store.new()
    assert made.parent == ""
    work = made.make_pre_dump()
    (made.images / "core-1.img").write_bytes(b"core")
    (made.images / "parent").symlink_to(made.parent)
    (made.pre_dump / "pages-1.img").write_bytes(b"p" * 4096)
    assert (made.images / made.parent).samefile(made.pre_dump)
    assert mode(work) == mode(made.pre_dump) == 0o700
    made.seal()
    assert made.size_bytes == 4 + 4096
    assert mode(made.pre_dump / "pages-1.img") == 0o600
    os.truncate(made.pre_dump / "pages-1.img", 100)
    with pytest.raises(ImageCorrupt, match="100 bytes, 4096 were written"):
        ImageDir(made.path).verify()


def test_a_dump_that_does_without(store: ImageStore) -> None:
    made = store.new()
    made.make_pre_dump()
    made.drop_pre_dump()
    assert made.parent == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9, "files": {}}', '{"version": 1}'])
def test_a_manifest_that_is_none(images: ImageDir, text: str) -> None:
    (images.path / "manifest.json").write_text(text)
    with pytest.raises(ImageCorrupt):
        ImageDir(images.path).verify()


def test_without_manifest_there_are_no_images(store: ImageStore) -> None:
    with pytest.raises(ImageCorrupt, match="no manifest"):
        store.new().verify()


def test_consumed_is_seen_by_others(images: ImageDir) -> None:
    assert not images.consumed
    images.mark_consumed()
    assert images.consumed and ImageDir(images.path).consumed
    images.unmark()
    assert not images.consumed and not ImageDir(images.path).consumed


def test_each_sleep_and_each_attempt_has_its_own(store: ImageStore, images: ImageDir) -> None:
    assert store.new().path != images.path
    assert images.new_attempt() != images.new_attempt()


def test_the_newest_failed_images_are_kept(store: ImageStore, images: ImageDir) -> None:
    other = store.new()
    (other.images / "x.img").write_bytes(b"1")
    other.seal()
    assert store.keep_failed(images) == store.path / "failed"
    assert store.keep_failed(other) == store.path / "failed"
    assert [f.name for f in (store.path / "failed" / "images").iterdir()] == ["x.img"]
    assert not images.path.exists() and not other.path.exists()


def test_large_failed_images_are_not_kept(store: ImageStore) -> None:
    large = store.new()
    with (large.images / "pages-1.img").open("wb") as file:
        file.truncate(300 << 20)
    large.seal()
    assert store.keep_failed(large) is None
    assert not large.path.exists()


def test_close_leaves_nothing(tmp_path: Path, store: ImageStore, images: ImageDir) -> None:
    fds = len(list(Path("/proc/self/fd").iterdir()))
    store.close()
    store.close()
    assert list((tmp_path / "i").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == fds - 1


def test_sweep_takes_what_no_shim_holds(tmp_path: Path, store: ImageStore) -> None:
    dead = tmp_path / "i" / "ns.dead"
    (dead / "1" / "images").mkdir(parents=True)
    assert sweep(str(tmp_path / "i")) == ["ns.dead"]
    assert not dead.exists() and store.path.exists()
    assert sweep(str(tmp_path / "missing")) == []


def test_a_second_shim_is_refused(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(BlockingIOError):
        ImageStore.open(str(tmp_path / "i"), "ns.c1")


def test_a_restarted_shim_finds_it_empty(tmp_path: Path) -> None:
    left = tmp_path / "i" / "ns.c2" / "7"
    left.mkdir(parents=True)
    opened = ImageStore.open(str(tmp_path / "i"), "ns.c2")
    assert not left.exists()
    with (opened.path / ".lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    opened.close()


def test_a_fresh_directory_that_a_sweep_has_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its locking it looks like that of a dead shim."""
    root = tmp_path / "i"
    lock = image._lock
    swept: list[str] = []

    def first_comes_the_sweep(path: Path) -> int | None:
        if not swept and path.name == "ns.c2":
            swept.append(path.name)
            held = lock(path)
            assert held is not None
            try:
                return lock(path)
            finally:
                path.rename(path.with_name(".removed-ns.c2"))
                os.close(held)
        return lock(path)

    monkeypatch.setattr(image, "_lock", first_comes_the_sweep)
    store = ImageStore.open(str(root), "ns.c2")
    assert swept and store.path.is_dir()
    assert sweep(str(root)) == ["ns.c2"]
    assert store.path.is_dir()
    store.close()


def test_condemned_images_are_out_of_the_way(store: ImageStore, images: ImageDir) -> None:
    gone = images.condemn()
    assert gone.exists() and not images.path.exists()
    store.close()
    assert not gone.exists()
