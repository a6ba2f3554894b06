"""Images are changed under a plan, and are still held to what was written."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zeropod.checkpoint.image import ImageDir, ImageStore
from zeropod.checkpoint.runc import RuncEngine
from zeropod.errors import ImageCorrupt, InvalidArgument
from zeropod.oci.bundle import Bundle

_TARGET: Any = SimpleNamespace(owner=(0, 0))


class _Held:
    """Adds a record with each change."""

    def __init__(self, images: ImageDir, error: Exception | None = None) -> None:
        self._file = images.images / "remap-fpath.img"
        self._error = error

    def fit(self) -> bool:
        if self._error:
            raise self._error
        self._file.write_bytes(b"a ghost")
        return True

    def close(self) -> None: ...


@pytest.fixture
def images(tmp_path: Path) -> ImageDir:
    made = ImageStore.open(str(tmp_path / "i"), "ns.c1").new()
    (made.images / "pages-1.img").write_bytes(b"p" * 8192)
    made.seal()
    made.held = _Held(made)  # type: ignore[assignment]
    return made


@pytest.fixture
def engine(tmp_path: Path) -> RuncEngine:
    nothing: Any = None
    return RuncEngine(nothing, nothing, Bundle(str(tmp_path)))


def test_what_was_changed_counts(engine: RuncEngine, images: ImageDir) -> None:
    engine.fit(_TARGET, images)
    images.verify()
    assert images.size_bytes == 8192 + len(b"a ghost")


def test_harm_done_before_is_not_sealed(engine: RuncEngine, images: ImageDir) -> None:
    os.truncate(images.images / "pages-1.img", 4096)
    for _ in range(2):
        with pytest.raises(ImageCorrupt, match="4096 bytes, 8192 were written"):
            engine.fit(_TARGET, images)


@pytest.mark.parametrize(
    "error", [OSError(28, "disk full"), ValueError("no record"), InvalidArgument("no bundle")]
)
def test_what_cannot_be_fitted_is_left_to_criu(
    engine: RuncEngine, images: ImageDir, error: Exception
) -> None:
    images.held = _Held(images, error)  # type: ignore[assignment]
    engine.fit(_TARGET, images)
    images.verify()
