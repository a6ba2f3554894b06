"""`delete` alone, after everything has died."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.package.node import Node
from zeropod.api.task_pb2 import DeleteResponse
from zeropod.config import NodeSettings
from zeropod.oci.joined import Host
from zeropod.oci.runtime import RuntimeOptions
from zeropod.shim.process import hierarchies


def fake_runtime(folder: Path) -> Path:
    """Notes how it was called."""
    file = folder / "runtime"
    file.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n')
    file.chmod(0o755)
    return file


def test_delete_cleans_up_after_a_killed_shim(stub_node: Node, tmp_path: Path) -> None:
    socket_path = stub_node.start("a")
    bundle = stub_node.bundles / "a"
    (pid,) = stub_node.shims()
    stub_node.kill(pid)
    note = {"binary_name": str(fake_runtime(tmp_path)), "root": "/run/r", "systemd_cgroup": True}
    (bundle / "runtime.json").write_text(json.dumps(note))
    (bundle / "init.pid").write_text("4711")
    (bundle / "rootfs").mkdir()
    holder = ["nsenter", "-t", str(stub_node.holder), "-m"]
    subprocess.run([*holder, "mount", "-t", "tmpfs", "t", bundle / "rootfs"], check=True)
    mark = {**os.environ, "ZEROPOD_SHIM": socket_path.name}
    helper = subprocess.Popen(["sleep", "1000"], env=mark)
    before = time.time_ns()

    response = DeleteResponse.FromString(stub_node.call("delete", "a"))

    assert (response.pid, response.exit_status) == (4711, 137)
    assert before <= response.exited_at.ToNanoseconds() <= time.time_ns()
    assert (tmp_path / "calls").read_text() == (
        "--root /run/r/test --systemd-cgroup delete --force a\n"
    )
    assert helper.wait(60) == -9
    assert not socket_path.exists()
    mounts = Path(f"/proc/{stub_node.holder}/mounts").read_text()
    assert str(bundle) not in mounts


@pytest.mark.parametrize("name", ["test.a", ".removed-test.a"])
def test_a_criu_that_has_lost_its_runtime_is_killed(
    stub_node: Node, tmp_path: Path, name: str
) -> None:
    """It has no mark: its title has overwritten its environment. Another container's lives on."""
    stub_node.start("a")
    stub_node.kill(*stub_node.shims())
    note = {"binary_name": str(fake_runtime(tmp_path))}
    (stub_node.bundles / "a/runtime.json").write_text(json.dumps(note))
    criu = shutil.copy("/bin/sleep", tmp_path / "criu")
    store = Path(NodeSettings().image_root)
    made = []
    try:
        for folder in (store / name, store / "test.another"):
            folder.mkdir(parents=True)
            with (folder / "core-1.img").open("w") as image:
                made.append(subprocess.Popen([criu, "1000"], stdin=image))
        ours, other = made
        stub_node.call("delete", "a")
        assert ours.wait(60) == -9
        assert other.poll() is None
    finally:
        for process in made:
            process.kill()
            process.wait()
        for folder in (store / name, store / "test.another"):
            shutil.rmtree(folder, ignore_errors=True)


def test_delete_does_not_empty_what_a_killed_restore_has_bound(
    stub_node: Node, tmp_path: Path
) -> None:
    """The runtime removes its own directory, and stops at no mount."""
    stub_node.start("a")
    bundle = stub_node.bundles / "a"
    (pid,) = stub_node.shims()
    stub_node.kill(pid)
    state, layer = tmp_path / "root/test/a", tmp_path / "layer"
    (state / "criu-root").mkdir(parents=True)
    layer.mkdir()
    (layer / "data").write_text("precious")
    runtime = fake_runtime(tmp_path)
    runtime.write_text(runtime.read_text() + f"rm -rf {state}\n")
    note = {"binary_name": str(runtime), "root": str(tmp_path / "root")}
    (bundle / "runtime.json").write_text(json.dumps(note))
    holder = ["nsenter", "-t", str(stub_node.holder), "-m"]
    subprocess.run([*holder, "mount", "--bind", layer, state / "criu-root"], check=True)
    stub_node.call("delete", "a")
    assert (layer / "data").read_text() == "precious"
    assert not state.exists()


def test_delete_leaves_a_living_shim_of_the_group_alone(stub_node: Node, tmp_path: Path) -> None:
    socket_path = stub_node.start("a")
    mark = {**os.environ, "ZEROPOD_SHIM": socket_path.name}
    helper = subprocess.Popen(["sleep", "1000"], env=mark)
    note = {"binary_name": str(fake_runtime(tmp_path))}
    (stub_node.bundles / "a/runtime.json").write_text(json.dumps(note))
    stub_node.call("delete", "a")
    assert socket_path.exists()
    assert helper.poll() is None
    helper.kill()
    helper.wait()
    assert list(stub_node.shims().values()) == ["a"]


def test_delete_without_anything_answers(stub_node: Node, tmp_path: Path) -> None:
    """No shim, no state, no mount: containerd may call it more than once."""
    note = {"binary_name": str(fake_runtime(tmp_path))}
    (stub_node.bundle("a") / "runtime.json").write_text(json.dumps(note))
    for zygote in ("on", "off"):
        out = stub_node.call("delete", "a", ZEROPOD_ZYGOTE=zygote)
        assert DeleteResponse.FromString(out).exit_status == 137


def test_delete_removes_cgroups_that_the_runtime_does_not_know(
    stub_node: Node, tmp_path: Path
) -> None:
    """Those of a runtime that was killed while it made them, and who is in them."""
    stub_node.start("a")
    (pid,) = stub_node.shims()
    stub_node.kill(pid)
    bundle, name = stub_node.bundles / "a", f"zp-test-{os.getpid()}"
    config = {"annotations": {}, "linux": {"cgroupsPath": f"/{name}/a"}}
    (bundle / "config.json").write_text(json.dumps(config))
    note = {"binary_name": str(fake_runtime(tmp_path))}
    (bundle / "runtime.json").write_text(json.dumps(note))
    process = subprocess.Popen(["sleep", "1000"])
    roots = list(hierarchies().values())
    try:
        for root in roots:
            (root / name / "a/below").mkdir(parents=True)
            with contextlib.suppress(OSError):  # cpuset, as long as it is not set up
                (root / name / "a/below/cgroup.procs").write_text(str(process.pid))
        stub_node.call("delete", "a")
        assert process.wait(60) == -9
        assert [root for root in roots if (root / name / "a").exists()] == []
    finally:
        process.kill()
        for root in roots:
            (root / name).rmdir()


def test_delete_takes_along_who_has_joined(stub_node: Node, tmp_path: Path) -> None:
    """Though containerd has removed the bundle of it already."""
    stub_node.start("pod")
    (pid,) = stub_node.shims()
    app = stub_node.bundle("app")
    runtime = fake_runtime(tmp_path)
    options = RuntimeOptions(binary_name=str(runtime), root="/run/r")
    Host("pod", "/run/containerd/s/x").note(app, options)
    options.note(stub_node.bundles / "pod")
    shutil.rmtree(app)
    stub_node.call("delete", "pod")
    assert not (tmp_path / "calls").read_text().count("app"), "of a shim that lives"
    stub_node.kill(pid)
    stub_node.call("delete", "pod")
    assert (tmp_path / "calls").read_text().splitlines()[1:] == [
        f"--root /run/r/test delete --force {id}" for id in ("app", "pod")
    ]


def test_a_dying_shim_is_not_taken_for_a_living_one(stub_node: Node, tmp_path: Path) -> None:
    """Its connections are closed, so containerd asks for a `delete`; its socket is about to be."""
    socket_path = stub_node.start("pod")
    (pid,) = stub_node.shims()
    stub_node.kill(pid)
    options = RuntimeOptions(binary_name=str(fake_runtime(tmp_path)))
    Host("pod", str(socket_path)).note(stub_node.bundle("app"), options)
    options.note(stub_node.bundles / "pod")
    socket_path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path))
        listening.listen()
        process = stub_node.launch("delete", "pod")
        asked, _, _ = select.select([listening], [], [], 60)
        assert asked, "delete did not look"
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["app", "pod"]


def test_delete_clears_what_containerd_could_not_remove(stub_node: Node, tmp_path: Path) -> None:
    """A runtime has made mount points where containerd had unmounted the root file system."""
    stub_node.start("pod")
    (pid,) = stub_node.shims()
    options = RuntimeOptions(binary_name=str(fake_runtime(tmp_path)))
    options.note(stub_node.bundles / "pod")
    bundles = [stub_node.bundle(id) for id in ("given-up", "as-ever", "pod")]
    given_up, as_ever, pod = bundles
    for bundle in bundles:
        Host("pod", "/run/containerd/s/x").note(bundle, options)
        work = tmp_path / f"work-{bundle.name}"
        work.mkdir()
        (bundle / "work").symlink_to(work)
        (bundle / "rootfs").mkdir()
    for bundle in (given_up, pod):
        (bundle / "rootfs/etc").mkdir()
        (bundle / "rootfs/etc/hosts").touch()
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/empty").touch()
    holder = ["nsenter", "-t", str(stub_node.holder), "-m"]
    mount = ["mount", "--bind", tmp_path / "layer", as_ever / "rootfs"]
    subprocess.run([*holder, *mount], check=True)
    stub_node.kill(pid)
    stub_node.call("delete", "pod")
    assert not given_up.exists()
    assert not (tmp_path / "work-given-up").exists()
    for bundle in (as_ever, pod):  # which containerd removes
        assert list((bundle / "rootfs").iterdir()) == []
        assert (tmp_path / f"work-{bundle.name}").exists()
    assert (tmp_path / "layer/empty").exists()


def test_two_deletes_of_one_container_do_not_meet(stub_node: Node, tmp_path: Path) -> None:
    """One for it and one for its sandbox: the runtime runs for one after the other."""
    stub_node.start("pod")
    (pid,) = stub_node.shims()
    app = stub_node.bundle("app", **{"io__kubernetes__cri__sandbox-id": "pod"})
    runtime = fake_runtime(tmp_path)
    busy = tmp_path / "busy"
    alone = f"mkdir {busy} || echo met >> {tmp_path}/calls; sleep 0.5; rmdir {busy}"
    runtime.write_text(f"{runtime.read_text()}case $* in *app) {alone} ;; esac\n")
    options = RuntimeOptions(binary_name=str(runtime))
    Host("pod", "/run/containerd/s/x").note(app, options)
    (app / "address").unlink()
    options.note(app)
    options.note(stub_node.bundles / "pod")
    stub_node.kill(pid)
    both = [stub_node.launch("delete", id) for id in ("pod", "app")]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
    assert "met" not in (tmp_path / "calls").read_text()
    assert (tmp_path / "calls").read_text().count("app") == 2
