"""One wheel, one sdist, and a sentence where something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from tests.package.installation import LAUNCHER, build, copy_tree
from zeropod.api import runc_options_pb2, runtimeoptions_pb2
from zeropod.api.types_pb2 import RuntimeInfo

VERSION = (Path(__file__).resolve().parents[2] / "VERSION").read_text().strip()


def test_the_wheel_has_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        launcher = archive.getinfo(f"zeropod-{VERSION}.data/scripts/{LAUNCHER}")
        assert launcher.external_attr >> 16 & 0o111
        assert launcher.file_size < 100_000, "not stripped"
        assert archive.read(launcher)[:4] == b"\x7fELF"
    assert "zeropod/_fastpath/redirector.bpf.o" in names
    assert "zeropod/_build_info.py" in names
    assert "zeropod/py.typed" in names
    for module in ("_spawn", "_activator", "_netns"):
        assert f"zeropod/_fastpath/{module}.pyi" in names
        assert any(n.startswith(f"zeropod/_fastpath/{module}.cpython") for n in names)
    outside = {name.split("/")[0] for name in names} - {
        "zeropod",
        f"zeropod-{VERSION}.data",
        f"zeropod-{VERSION}.dist-info",
    }
    assert not outside
    assert not [name for name in names if name.endswith((".c", ".h", ".pyx", ".pxd"))]


def test_the_tree_stays_clean(tree: Path, wheel: Path) -> None:
    assert not (tree / "zeropod/_build_info.py").exists()
    assert not list((tree / "zeropod").rglob("*.o"))


def test_the_sdist_builds_the_same(tree: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tree, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    again = build(unpacked, "bdist_wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        info = "zeropod/_build_info.py"
        assert first.read(info) == second.read(info), "equal sources, another build id"


def test_a_changed_source_is_another_build(tmp_path: Path, wheel: Path) -> None:
    tree = copy_tree(tmp_path)
    code = "import sys; sys.argv[1:] = ['--name']; import setup; print(setup.build_id())"

    def build_id() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, text=True
        )
        return done.stdout.split()[-1]

    before = build_id()
    assert build_id() == before
    with (tree / "zeropod/errors.py").open("a") as file:
        file.write("\n")
    assert build_id() != before


@pytest.mark.parametrize(
    ("hide", "package"),
    [("/usr/include/bpf", "libbpf-dev"), ("/sys/kernel/btf", "linux-image-")],
)
def test_what_is_missing_is_named(tree: Path, hide: str, package: str) -> None:
    script = f'mount -t tmpfs tmpfs {hide} && exec "$0" setup.py -q build_native'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("zeropod: ")
    assert f"apt-get install {package}" in last


def test_a_missing_clang_is_named(tree: Path, tmp_path: Path) -> None:
    for tool in ("cc", "sh"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_native"],
        cwd=tree,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert "apt-get install clang" in done.stderr.strip().splitlines()[-1]


def test_commands_say_their_version(installed: Path) -> None:
    def said(*argv: str) -> str:
        done = subprocess.run([installed / argv[0], *argv[1:]], check=True, capture_output=True)
        return done.stdout.decode()

    assert said("zeropod", "--version").startswith(f"zeropod {VERSION} (")
    build_id = said("zeropod", "--version").split("(")[1].rstrip(")\n")
    shim = said(LAUNCHER, "-v")
    assert shim.splitlines()[0] == f"{LAUNCHER}:"
    assert VERSION in shim
    assert build_id in shim
    assert "usage: zeropod" in said("zeropod", "--help")


def test_unknown_calls_are_refused_with_a_sentence(installed: Path) -> None:
    for argv in ([], ["run"], ["-id", "start"]):
        done = subprocess.run([installed / LAUNCHER, *argv], capture_output=True, text=True)
        assert done.returncode == 1
        assert "expected start, delete, -info or -v" in done.stderr


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """An OCI runtime that knows `features` and nothing else."""
    file = tmp_path / "some-runtime"
    file.write_text('#!/bin/sh\n[ "$1" = features ] && echo \'{"ociVersionMin":"1.0.0"}\'\n')
    file.chmod(0o755)
    return file


def info(launcher: Path, stdin: bytes, path: str = "") -> RuntimeInfo:
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [launcher, "-info"], input=stdin, check=True, capture_output=True, env=environ
    )
    return RuntimeInfo.FromString(done.stdout)


def test_info_without_options_asks_runc(installed: Path, runtime: Path) -> None:
    runtime.rename(runtime.with_name("runc"))
    found = info(installed / LAUNCHER, b"", str(runtime.parent))
    assert found.name == "io.containerd.zeropod.v2"
    assert found.version.version == VERSION
    assert found.features.type_url.endswith("/features/Features")
    assert found.features.value.strip() == b'{"ociVersionMin":"1.0.0"}'
    assert not found.HasField("options")


def test_info_follows_both_kinds_of_options(installed: Path, runtime: Path) -> None:
    runc = runc_options_pb2.Options(root="/x" * 200, binary_name=str(runtime))
    body = f'# BinaryName = "no"\n  BinaryName = "{runtime}"\nRoot = "/r"\n'.encode()
    generic = runtimeoptions_pb2.Options(config_path="/etc/x", config_body=body)
    for name, message in (("containerd.runc.v1", runc), ("runtimeoptions.v1", generic)):
        options = Any(type_url=f"{name}.Options", value=message.SerializeToString())
        found = info(installed / LAUNCHER, options.SerializeToString())
        assert found.features.value.strip() == b'{"ociVersionMin":"1.0.0"}'
        assert found.options == options


def test_info_names_a_runtime_that_is_not_there(installed: Path) -> None:
    message = runc_options_pb2.Options(binary_name="/nowhere/runc")
    options = Any(type_url="containerd.runc.v1.Options", value=message.SerializeToString())
    done = subprocess.run(
        [installed / LAUNCHER, "-info"], input=options.SerializeToString(), capture_output=True
    )
    assert done.returncode == 1
    assert b"/nowhere/runc" in done.stderr


@pytest.mark.parametrize("stdin", [b"\xff" * 64, b"\x12\xff\xff\xff\xff\x0f", os.urandom(4096)])
def test_info_survives_garbage(installed: Path, runtime: Path, stdin: bytes) -> None:
    runtime.rename(runtime.with_name("runc"))
    environ = {**os.environ, "PATH": f"{runtime.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [installed / LAUNCHER, "-info"], input=stdin, capture_output=True, env=environ
    )
    assert done.returncode in (0, 1)


@pytest.mark.parametrize("rest", ["exec sleep 1000", "echo '}'; exec >/dev/null; exec sleep 1000"])
def test_info_does_without_the_features_of_a_runtime_that_hangs(
    installed: Path, runtime: Path, rest: str
) -> None:
    """In the middle of its document, or after it."""
    runtime.write_text(f"#!/bin/sh\necho '{{'\n{rest}\n")
    options = runc_options_pb2.Options(binary_name=str(runtime)).SerializeToString()
    given = Any(type_url="containerd.runc.v1.Options", value=options).SerializeToString()
    launcher = [installed / LAUNCHER, "-info"]
    done = subprocess.run(launcher, input=given, check=True, capture_output=True, timeout=60)
    found = RuntimeInfo.FromString(done.stdout)
    assert found.name == "io.containerd.zeropod.v2"
    assert not found.HasField("features")
