"""Exec probes of a sleeping pod: each wakes it, or is answered with what it said last."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import waiting
from lab.node import Node
from lab.pods import Container, Pod
from zeropod.api import shim_pb2 as pb
from zeropod.task.status import SERVICE, SOCKET_ROOT
from zeropod.ttrpc import Client

from .conftest import MakePod
from .test_sleep import FAST, LONG

_CACHED = {**LONG, "exec-probes": "cached"}
_PROBE = ("sh", "-c", "date +%s%N; echo warned >&2")
"""No two runs of it say the same."""


def _woken(node: Node) -> bool:
    """Whether the only pod that there is has ever been restored."""

    async def ask() -> pb.MetricsResponse:
        (path,) = waiting.until("one shim's socket", alone)
        client = await Client.connect(str(path))
        try:
            return await client.call(SERVICE, "Metrics", pb.MetricsRequest(), pb.MetricsResponse)
        finally:
            client.close()

    def alone() -> list[object] | None:  # the shim of the test before may be ending
        found: list[object] = list(node.path(SOCKET_ROOT).iterdir())
        return found if len(found) == 1 else None

    (found,) = asyncio.run(ask()).metrics
    return found.HasField("last_restore")


def test_asleep_a_probe_is_answered_with_what_it_said_last(
    no_leaks: None, node: Node, make_pod: MakePod
) -> None:
    pod = make_pod("stateful", _CACHED)
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    first, last = app.exec(*_PROBE), app.exec(*_PROBE)
    assert first.stdout != last.stdout
    app.wait_asleep()
    for _ in range(20):
        assert app.exec(*_PROBE) == last
        assert not app.live_pids()
    assert not _woken(node)
    reply = pod.get()
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)
    waiting.until("restore", lambda: _woken(node))
    anew = app.exec(*_PROBE)
    assert anew.stdout != last.stdout
    app.wait_asleep()
    assert app.exec(*_PROBE) == anew


@pytest.mark.parametrize(
    ("command", "code"),
    [(("sh", "-c", "date +%s%N"), 0), (("sh", "-c", "exit 3"), 3)],
    ids=["never seen", "failed"],
)
def test_what_is_not_remembered_wakes(
    node: Node, make_pod: MakePod, command: tuple[str, ...], code: int
) -> None:
    pod = make_pod("stateful", _CACHED)
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    app.exec(*_PROBE)
    if code:
        app.exec(*command)
    app.wait_asleep()
    assert not _woken(node)
    assert app.exec(*command).exit_code == code
    waiting.until("restore", lambda: _woken(node))
    reply = pod.get()
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)


@contextmanager
def _probed(app: Container) -> Iterator[None]:
    """One probe after another, without a pause."""
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            assert app.exec("true").exit_code == 0

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_it_falls_asleep_and_stays_so_under_probes(node: Node, make_pod: MakePod) -> None:
    pod: Pod = make_pod("stateful", _CACHED)
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    assert app.exec("true").exit_code == 0
    with _probed(app):
        app.wait_asleep()
        for _ in range(20):
            assert app.exec("true").exit_code == 0
        assert not app.live_pids()
        assert not _woken(node)
    reply = pod.get()
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)


def test_by_default_each_wakes(make_pod: MakePod) -> None:
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    said = set()
    for _ in range(3):
        said.add(app.exec(*_PROBE).stdout)
        app.wait_asleep()
    assert len(said) == 3
    reply = pod.get()
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)
