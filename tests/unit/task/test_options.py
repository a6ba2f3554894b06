"""Runtime options: both types, every key, and an error that names what is not understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from zeropod.api.runc_options_pb2 import Options as RuncOptions
from zeropod.api.runtimeoptions_pb2 import Options as TomlOptions
from zeropod.errors import InvalidArgument
from zeropod.oci.runtime import RuntimeOptions
from zeropod.task.options import decode

EVERY = RuntimeOptions(
    binary_name="crun",
    root="/run/r",
    systemd_cgroup=True,
    no_pivot_root=True,
    no_new_keyring=True,
    shim_cgroup="/shims",
    io_uid=1,
    io_gid=2,
    criu_image_path="/ci",
    criu_work_path="/cw",
)
EVERY_TOML = b"""
BinaryName = "crun"
Root = "/run/r"
SystemdCgroup = true
NoPivotRoot = true
NoNewKeyring = true
ShimCgroup = "/shims"
IoUid = 1
IoGid = 2
CriuImagePath = "/ci"
CriuWorkPath = "/cw"
"""
# What containerd's default configuration file holds.
DEFAULT_TOML = b"""
BinaryName = ''
CriuImagePath = ''
CriuPath = ''
CriuWorkPath = ''
IoGid = 0
IoUid = 0
NoNewKeyring = false
NoPivotRoot = false
Root = ''
ShimCgroup = ''
SystemdCgroup = false
"""


def runc(value: bytes) -> Any:
    return Any(type_url="containerd.runc.v1.Options", value=value)


def toml(body: bytes = b"", path: str = "") -> Any:
    message = TomlOptions(config_body=body, config_path=path)
    return Any(type_url="runtimeoptions.v1.Options", value=message.SerializeToString())


@pytest.mark.parametrize("options", [Any(), runc(b""), toml(), toml(DEFAULT_TOML)])
def test_defaults(options: Any) -> None:
    assert decode(options) == RuntimeOptions()


def test_every_key_of_both_types(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_bytes(EVERY_TOML)
    message = RuncOptions(
        binary_name="crun",
        root="/run/r",
        systemd_cgroup=True,
        no_pivot_root=True,
        no_new_keyring=True,
        shim_cgroup="/shims",
        io_uid=1,
        io_gid=2,
        criu_image_path="/ci",
        criu_work_path="/cw",
        task_api_address="unix:///s",
        task_api_version=3,
    )
    assert decode(runc(message.SerializeToString())) == EVERY
    assert decode(toml(EVERY_TOML)) == EVERY
    assert decode(toml(path=str(file))) == EVERY
    assert decode(toml(EVERY_TOML, "/not/read/when/there/is/a/body")) == EVERY


def test_a_type_url_may_have_a_prefix() -> None:
    options = runc(RuncOptions(root="/r").SerializeToString())
    options.type_url = f"type.googleapis.com/{options.type_url}"
    assert decode(options).root == "/r"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Any(type_url="some.Other", value=b""), "type some.Other is not known"),
        (runc(b"\xff"), "not a valid containerd.runc.v1.Options"),
        (runc(b"\xaa\x06\x01x"), "field 101 is not known"),
        (runc(RuncOptions(criu_path="/c").SerializeToString()), "criu_path '/c' is not supported"),
        (Any(type_url="runtimeoptions.v1.Options", value=b"\xff"), "not a valid runtimeoptions"),
        (toml(b"a = ="), "config_body: not TOML"),
        (toml(b"\xff"), "config_body: not TOML"),
        (toml(b"a=" + b"[" * 100_000), "config_body: not TOML"),
        (toml(b"SystemdCgroups = true"), "'SystemdCgroups' is not known, expected one of Binary"),
        (toml(b"CriuPath = '/c'"), "CriuPath '/c' is not supported"),
        (toml(b"SystemdCgroup = 'yes'"), "SystemdCgroup: expected a bool, found 'yes'"),
        (toml(b"IoUid = true"), "IoUid: expected a int, found True"),
        (toml(b"IoUid = -1"), "IoUid: -1 is not an id"),
        (toml(b"IoGid = 4294967296"), "IoGid: 4294967296 is not an id"),
        (toml(b"#" * (1 << 20) + b"\n"), "longer than 1048576 bytes"),
        (toml(path="/nonexistent/o.toml"), "/nonexistent/o.toml: No such file"),
    ],
)
def test_what_is_not_understood_is_named(options: Any, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(options)
    assert text in str(caught.value)


def test_a_file_without_end_is_read_to_the_limit_only() -> None:
    with pytest.raises(InvalidArgument, match="longer than"):
        decode(toml(path="/dev/zero"))
