"""The committed messages are those that proto/ gives, and their bytes are containerd's."""

from __future__ import annotations

from pathlib import Path

from zeropod.api import cgroups_v1_pb2, events_pb2, task_pb2
from zeropod.api.generate import generate

API = Path(__file__).resolve().parents[3] / "zeropod/api"


def test_regenerating_changes_nothing(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh = {path.name: path.read_text() for path in (tmp_path / "zeropod/api").iterdir()}
    committed = {path.name: path.read_text() for path in API.glob("*_pb2.py*")}
    assert fresh == committed


def test_names_that_containerd_looks_up() -> None:
    assert task_pb2.CreateTaskRequest.DESCRIPTOR.full_name == "containerd.task.v2.CreateTaskRequest"
    assert events_pb2.TaskExit.DESCRIPTOR.full_name == "containerd.events.TaskExit"
    assert cgroups_v1_pb2.Metrics.DESCRIPTOR.full_name == "io.containerd.cgroups.v1.Metrics"


def test_known_bytes() -> None:
    request = task_pb2.KillRequest(id="a", signal=9, all=True)
    assert request.SerializeToString() == b"\x0a\x01a\x18\x09\x20\x01"
