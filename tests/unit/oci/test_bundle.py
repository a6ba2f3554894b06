"""What is changed in config.json is changed there alone: all else is the runtime's, and stays."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zeropod.errors import InvalidArgument
from zeropod.oci.bundle import Bundle

_CONFIG: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "/elsewhere/rootfs", "readonly": True},
    "process": {"terminal": True, "args": ["/bin/öl", "\\x"], "oomScoreAdj": -998},
    "mounts": [
        {"destination": "/proc", "type": "proc"},
        {"destination": "/config", "type": "bind", "source": "/a", "options": ["rbind"]},
    ],
    "annotations": {"a": "1", "never.heard/of": "it"},
    "hooks": {"prestart": [{"path": "/bin/true"}]},
    "vm": {"unknown": [1, 2.5, None, {"deep": [18446744073709551615]}]},
    "linux": {
        "cgroupsPath": "/kubepods/pod1/c1",
        "namespaces": [
            {"type": "pid"},
            {"type": "network"},
            {"type": "ipc", "path": "/proc/7/ns/ipc", "later": True},
        ],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]},
        "resources": {
            "cpu": {"shares": 2, "quota": -1},
            "unified": {"memory.high": "max"},
            "devices": [{"allow": False, "access": "rwm"}],
        },
    },
}


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(_CONFIG))
    file.chmod(0o600)
    return file


def _annotate(bundle: Bundle, config: dict[str, Any]) -> None:
    bundle.add_annotations({"org.criu.config": "/x"})
    config["annotations"]["org.criu.config"] = "/x"


def _join(bundle: Bundle, config: dict[str, Any]) -> None:
    bundle.join_network("/proc/9/fd/3")
    config["linux"]["namespaces"][1]["path"] = "/proc/9/fd/3"


def _limit(bundle: Bundle, config: dict[str, Any]) -> None:
    bundle.update_resources({"cpu": {"quota": 5}, "memory": {"limit": 6}})
    config["linux"]["resources"]["cpu"]["quota"] = 5
    config["linux"]["resources"]["memory"] = {"limit": 6}


def _move_mounts(bundle: Bundle, config: dict[str, Any]) -> None:
    bundle.set_mount_sources({"/config": "/b", "/nowhere": "/c"})
    config["mounts"][1]["source"] = "/b"


_WRITERS = [_annotate, _join, _limit, _move_mounts]


@pytest.mark.parametrize("write", _WRITERS)
def test_a_writer_leaves_all_else_as_it_was(
    file: Path, write: Callable[[Bundle, dict[str, Any]], None]
) -> None:
    wanted = copy.deepcopy(_CONFIG)
    write(Bundle(str(file.parent)), wanted)
    assert json.loads(file.read_text()) == wanted
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("write", _WRITERS)
def test_a_writer_takes_the_file_as_others_have_left_it(
    file: Path, write: Callable[[Bundle, dict[str, Any]], None]
) -> None:
    """What was read before is not what is written: somebody may have changed it since."""
    bundle = Bundle(str(file.parent))
    assert bundle.annotations == {"a": "1", "never.heard/of": "it"}
    changed = copy.deepcopy(_CONFIG)
    changed["linux"]["resources"]["pids"] = {"limit": 10}
    changed["linux"]["namespaces"].append({"type": "uts"})
    changed["annotations"]["b"] = "2"
    file.write_text(json.dumps(changed))
    write(bundle, changed)
    assert json.loads(file.read_text()) == changed


def test_what_was_written_is_what_is_found(file: Path) -> None:
    bundle = Bundle(str(file.parent))
    assert bundle.namespace_path("network") == ""
    for write in _WRITERS:
        write(bundle, copy.deepcopy(_CONFIG))
    assert bundle.namespace_path("network") == "/proc/9/fd/3"
    assert bundle.namespace_path("ipc") == "/proc/7/ns/ipc"
    assert bundle.namespace_path("user") is None
    assert bundle.annotations["org.criu.config"] == "/x"
    assert bundle.config["linux"]["resources"]["cpu"] == {"shares": 2, "quota": 5}
    assert bundle.cgroups_path == "/kubepods/pod1/c1"
    assert bundle.root == Path("/elsewhere/rootfs")
    assert bundle.terminal


def test_a_bare_config_has_defaults(file: Path) -> None:
    file.write_text("{}")
    bundle = Bundle(str(file.parent))
    assert bundle.root == file.parent / "rootfs" == bundle.rootfs
    assert (bundle.annotations, bundle.cgroups_path, bundle.terminal) == ({}, "", False)
    assert bundle.namespace_path("pid") is None


def test_nothing_large_is_kept(file: Path) -> None:
    """The file's size does not show in what a bundle refers to."""
    config = copy.deepcopy(_CONFIG)
    config["linux"]["seccomp"]["syscalls"] = [{"names": [f"call-{n}"]} for n in range(1000)]
    file.write_text(json.dumps(config))
    bundle = Bundle(str(file.parent))
    _limit(bundle, copy.deepcopy(config))
    assert bundle.cgroups_path == "/kubepods/pod1/c1"
    assert "call-7" in file.read_text()
    assert "call-7" not in repr(vars(bundle))


@pytest.mark.parametrize("text", ["", "[]", "{", '"config"'])
def test_what_is_no_config_is_refused_with_its_name(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=r"config\.json: "):
        Bundle(str(file.parent)).update_resources({"cpu": {"quota": 5}})
    assert file.read_text() == text


def test_limits_that_say_nothing_change_nothing(file: Path) -> None:
    Bundle(str(file.parent)).update_resources({"cpu": {"shares": 0, "quota": None}, "memory": {}})
    assert json.loads(file.read_text())["linux"]["resources"]["cpu"] == {"shares": 2, "quota": -1}
