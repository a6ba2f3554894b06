"""Which containers may sleep, and what is said of those that may not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zeropod.config import Settings
from zeropod.container.eligible import why_unscaled
from zeropod.oci.bundle import Bundle

_OWN = {"network": "", "pid": ""}
_SHARED_PID = "it shares its pid namespace, where its pids may be taken while it sleeps"


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The namespaces of another process, as /proc shows them."""
    command = ["unshare", "--user", "--net", "--pid", "--fork", "sh", "-c", "echo; read end"]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        yield f"/proc/{children.read_text().split()[0]}/ns"


def _why(tmp_path: Path, namespaces: dict[str, str], **more: Any) -> str:
    config = {
        "process": {"terminal": more.get("terminal", False)},
        "linux": {"namespaces": [{"type": k, "path": v} for k, v in namespaces.items()]},
        "annotations": more.get("annotations", {}),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = Settings(
        enabled=more.get("enabled", True), scaledown_duration_ns=more.get("duration", 1)
    )
    return why_unscaled(Bundle(str(tmp_path)), settings)


def test_one_with_namespaces_of_its_own_may_sleep(tmp_path: Path, elsewhere: str) -> None:
    assert _why(tmp_path, _OWN) == ""
    assert _why(tmp_path, {"network": f"{elsewhere}/net", "pid": ""}) == ""


@pytest.mark.parametrize("process", ["self", "mine"])
@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("network", "net", "it has the host's network"),
        ("pid", "pid", "it has the host's pid namespace"),
    ],
)
def test_the_hosts_is_known_also_by_its_path(
    tmp_path: Path, process: str, kind: str, name: str, text: str
) -> None:
    who = os.getpid() if process == "mine" else process
    assert _why(tmp_path, {**_OWN, kind: f"/proc/{who}/ns/{name}"}) == text


@pytest.mark.parametrize(
    ("kind", "text"),
    [("network", "it has the host's network"), ("pid", "it has the host's pid namespace")],
)
def test_the_hosts_is_what_is_not_named(tmp_path: Path, kind: str, text: str) -> None:
    assert _why(tmp_path, {other: "" for other in _OWN if other != kind}) == text


def test_a_shared_pid_namespace(tmp_path: Path, elsewhere: str) -> None:
    assert _why(tmp_path, {"network": "", "pid": f"{elsewhere}/pid"}) == _SHARED_PID


def test_a_path_that_is_not_there_is_the_runtimes_to_refuse(tmp_path: Path) -> None:
    assert _why(tmp_path, {"network": "/nobody/ns/net", "pid": ""}) == ""


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"terminal": True}, "it has a terminal"),
        ({"enabled": False}, "container-names does not name it"),
        ({"duration": 0}, "scaledown-duration is 0"),
        ({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}, "the pod's sandbox"),
    ],
)
def test_other_reasons(tmp_path: Path, more: dict[str, Any], text: str) -> None:
    assert text in _why(tmp_path, _OWN, **more)
