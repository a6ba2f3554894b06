"""What goes wrong with images, with CRIU and with the disk: said, survived, and nothing is left."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from lab import faults, waiting
from lab.node import Node
from lab.pods import Container, Pod
from lab.proto import cri_pb2 as pb

from .conftest import Log, MakePod, bounded
from .test_sleep import FAST, asleep, keeps

_FAIL = {**FAST, "restore-failure": "fail"}


def _truncated(images: Path) -> str:
    pages = next(images.glob("pages-*.img"))
    size = pages.stat().st_size
    os.truncate(pages, 4096)
    return f"{pages.name}: has 4096 bytes, {size} were written"


def _missing(images: Path) -> str:
    (images / "pstree.img").unlink()
    return "pstree.img: is missing"


def _garbage(images: Path) -> str:
    core = next(images.glob("core-*.img"))
    core.write_bytes(random.Random(1).randbytes(core.stat().st_size))
    return f"{core.name}: is not what was written (checksum)"


_EVERY_HARM = pytest.mark.parametrize("harm", [_truncated, _missing, _garbage])
Harm = Callable[[Path], str]


def _removed(pod: Pod) -> None:
    """Stop and remove as the kubelet does. A grace period of 100 s makes sure that none is used."""
    (app,) = pod.containers
    with bounded("stop and removal"):
        app.stop(100)
        app.remove()
        pod.remove()


# -- images that are not what was written --------------------------------------------------------


@_EVERY_HARM
def test_corrupt_images_and_policy_restart(
    no_leaks: None, make_pod: MakePod, log: Log, harm: Harm
) -> None:
    pod, boot_id = asleep(make_pod)
    (app,) = pod.containers
    what = harm(app.images())
    fresh = pod.get()
    assert (fresh["boot_id"] != boot_id, fresh["count"]) == (True, 1)
    log.wait_for(f"{app.id}: started afresh, its state is lost: restore {app.id}: ")
    log.wait_for(what)
    log.wait_for(f"images are kept in /var/lib/zeropod/i/k8s.io.{app.id}/failed")
    assert (app.image_store() / "failed/images/inventory.img").exists()
    assert app.status().state == pb.CONTAINER_RUNNING
    app.wait_asleep()
    assert keeps(fresh, pod.get())
    assert app.exec("echo", "alive").stdout == b"alive\n"
    _removed(pod)


@_EVERY_HARM
def test_corrupt_images_and_policy_fail(
    no_leaks: None, make_pod: MakePod, log: Log, harm: Harm
) -> None:
    pod = make_pod("stateful", _FAIL)
    (app,) = pod.containers
    app.wait_asleep()
    what = harm(app.images())
    with pytest.raises(ConnectionError):
        pod.get()
    assert app.wait_exited() == 128
    log.wait_for(f"restore {app.id}: ")
    log.wait_for(what)
    assert "afresh" not in log()
    assert not app.live_pids()
    _removed(pod)


def test_an_exec_is_told_why_there_is_nothing_to_execute_in(
    no_leaks: None, make_pod: MakePod
) -> None:
    pod = make_pod("stateful", _FAIL)
    (app,) = pod.containers
    app.wait_asleep()
    what = _truncated(app.images())
    with pytest.raises(grpc.RpcError) as refused:
        app.exec("true")
    assert what in str(refused.value.details())
    assert app.wait_exited() == 128
    _removed(pod)


@pytest.mark.parametrize("policy", ["restart", "fail"])
def test_a_stop_is_not_held_up_by_corrupt_images(
    no_leaks: None, make_pod: MakePod, policy: str
) -> None:
    pod = make_pod("stateful", {**FAST, "restore-failure": policy})
    (app,) = pod.containers
    app.wait_asleep()
    _truncated(app.images())
    _removed(pod)


# -- no checkpoint can be made -------------------------------------------------------------------


def _stays_awake(pod: Pod, log: Log, why: str) -> dict[str, object]:
    """The app runs on with its memory, and the log says why it does. Returns its last answer."""
    (app,) = pod.containers
    before = pod.get()
    log.wait_for(f"{app.id}: stays awake: checkpoint")
    log.wait_for(why)
    after = pod.get()
    assert keeps(before, after)
    assert app.exec("echo", "alive").stdout == b"alive\n"
    return after


def _sleeps_again(app: Container, before: dict[str, object]) -> None:
    """What hindered is gone: the next try, after the back-off, succeeds."""
    app.wait_asleep()
    assert keeps(before, app.pod.get())


def test_criu_is_not_there(no_leaks: None, node: Node, make_pod: MakePod, log: Log) -> None:
    pod = make_pod("stateful", FAST)
    with faults.criu_missing(node):
        why = "criu is not installed or not in PATH"
        seen = _stays_awake(pod, log, why)
    _sleeps_again(pod.containers[0], seen)
    _removed(pod)


@pytest.mark.parametrize("fault", [1, 3, 5])
def test_criu_fails_in_mid_dump(
    no_leaks: None, node: Node, make_pod: MakePod, log: Log, fault: int
) -> None:
    """CRIU's own injected faults: before the dump, in the pages, in the parasite's connection."""
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    with faults.criu_replaced(node, f'CRIU_FAULT={fault} exec {faults.REAL_CRIU} "$@"'):
        seen = _stays_awake(pod, log, "criu: ")
    _sleeps_again(app, seen)
    _removed(pod)


_DISKS = {
    "known before the dump": ("size=8m", "MiB are needed and 8 MiB are free on the disk of"),
    "found out in mid-dump": ("nr_inodes=14", "No space left on device"),
}


@pytest.mark.parametrize(("options", "why"), _DISKS.values(), ids=_DISKS)
def test_the_disk_of_the_images_is_full(
    no_leaks: None, node: Node, make_pod: MakePod, log: Log, options: str, why: str
) -> None:
    with faults.image_disk(node, options):
        pod = make_pod("stateful", FAST)
        (app,) = pod.containers
        seen = _stays_awake(pod, log, why)
        log.wait_for("the disk of")
        waiting.until(
            "removal of the failed images",
            lambda: [path.name for path in app.image_store().iterdir()] == [".lock"],
        )
        faults.resize(node, "size=100m,nr_inodes=1000")
        _sleeps_again(app, seen)
        _removed(pod)
