"""What a sandbox's bundle says of the containers that have joined its shim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zeropod.oci import joined
from zeropod.oci.bundle import Bundle
from zeropod.oci.joined import Host
from zeropod.oci.runtime import RuntimeOptions

OPTIONS = RuntimeOptions(binary_name="/r/runc", root="/r/root", systemd_cgroup=True)
SOCKET = Path("/run/containerd/s/x")


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    return _bundle(tmp_path, "pod")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return _bundle(tmp_path, "app")


def _bundle(folder: Path, id: str) -> Path:
    made = folder / id
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": f"/pods/{id}"}}))
    return made


def test_a_note_reads_like_the_bundle_when_that_is_gone(sandbox: Path, app: Path) -> None:
    Host("pod", str(SOCKET)).note(app, OPTIONS)
    for file in app.iterdir():
        file.unlink()
    app.rmdir()
    ((note, own),) = joined.noted(sandbox)
    assert own == app
    assert Bundle(str(note)).cgroups_path == "/pods/app"
    assert RuntimeOptions.noted(note) == OPTIONS


def test_a_deleted_container_is_forgotten(sandbox: Path, app: Path) -> None:
    host = Host("pod", str(SOCKET))
    host.note(app, OPTIONS)
    host.forget(app)
    host.forget(app)
    assert joined.noted(sandbox) == []
    host.note(app, OPTIONS)
    host.note(app, OPTIONS)
    assert len(joined.noted(sandbox)) == 1


def test_the_sandbox_itself_joins_nobody(sandbox: Path) -> None:
    before = sorted(sandbox.rglob("*"))
    Host("pod", str(SOCKET)).note(sandbox, OPTIONS)
    assert sorted(sandbox.rglob("*")) == before


def test_without_a_sandbox_nothing_is_noted(app: Path) -> None:
    before = sorted(app.parent.rglob("*"))
    Host("pod", str(SOCKET)).note(app, OPTIONS)
    assert sorted(app.parent.rglob("*")) == before


def test_what_start_would_have_written(sandbox: Path, app: Path) -> None:
    (sandbox / "shim-binary-path").write_text("/opt/shim")
    Host("pod", str(SOCKET)).note(app, OPTIONS)
    assert joined.read_address(app) == SOCKET
    assert (app / "shim-binary-path").read_text() == "/opt/shim"


def test_what_start_has_written_stays(sandbox: Path, app: Path) -> None:
    (sandbox / "shim-binary-path").write_text("/opt/shim")
    joined.write_address(app, Path("/run/containerd/s/y"))
    Host("pod", str(SOCKET)).note(app, OPTIONS)
    assert joined.read_address(app) == Path("/run/containerd/s/y")
    assert not (app / "shim-binary-path").exists()


def test_address_file(tmp_path: Path) -> None:
    assert joined.read_address(tmp_path) is None
    joined.write_address(tmp_path, SOCKET)
    assert (tmp_path / "address").read_text() == "unix:///run/containerd/s/x"
    assert joined.read_address(tmp_path) == SOCKET
