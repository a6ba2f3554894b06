"""The command `zeropod` on a node with real shims: what it shows of a pod's life, and wakes and
sleeps that it asks for.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab import paths, waiting
from lab.node import Node
from lab.pods import Container
from zeropod.config import STATUS_ROOT

from .conftest import MakePod
from .test_sleep import FAST
from .worldly import Told

HOUR = {"scaledown-duration": "1h"}
S = 10**9
_SLEEPER = ["/usr/bin/python3", "-c", "import signal; signal.pause()"]
_ATTACH = """
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0, 4096, 0o1600)
libc.shmat(segment, None, 0)
"""


class Command:
    def __init__(self, node: Node) -> None:
        self._node = node

    def __call__(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = self._node.command([paths.VENV / "bin/zeropod", *argv])
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    def ps(self) -> dict[str, dict[str, Any]]:
        """What it says of every container, by id."""
        done = self("ps", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return {one["id"]: one for one in json.loads(done.stdout)}

    def of(self, app: Container) -> dict[str, Any]:
        return self.ps()[app.id]

    def inspect(self, app: Container) -> dict[str, Any]:
        done = self("inspect", app.id, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return dict(json.loads(done.stdout))

    def wait_watched(self, app: Container) -> None:
        """Its ports are found a little after it has opened them."""
        waiting.until("its ports", lambda: len(self.inspect(app)["ports"]) == 3)

    def wait_alone(self, app: Container) -> None:
        """The app may close a connection a little later than its client."""
        alone = lambda: self.inspect(app)["open_connections"] == 0  # noqa: E731
        waiting.until(f"the end of all connections to {app.spec.name}", alone)

    def sleep(self, app: Container) -> None:
        self.wait_watched(app)
        self.wait_alone(app)
        done = self("sleep", app.id)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert ": asleep after " in done.stdout


@pytest.fixture
def zeropod(node: Node) -> Command:
    return Command(node)


def test_a_life_as_ps_shows_it(no_leaks: None, make_pod: MakePod, zeropod: Command) -> None:
    pod = make_pod("stateful", HOUR)
    (app,) = pod.containers
    zeropod.wait_watched(app)
    first = pod.get()
    found = zeropod.of(app)
    assert (found["state"], found["name"], found["namespace"]) == ("RUNNING", "stateful", "k8s.io")
    assert (found["pod_name"], found["pod_namespace"]) == (pod.spec.name, pod.spec.namespace)
    assert (found["wakes"], found["sleeps"], found["image_bytes"]) == (0, 0, 0)
    assert "of the node" in found["reason"] and "the last packet was " in found["reason"]
    assert 3500 * S < found["next_sleep_ns"] - time.time_ns() <= 3600 * S
    for number in range(1, 3):
        zeropod.sleep(app)
        asleep = zeropod.of(app)
        assert not app.live_pids()
        assert (asleep["state"], asleep["sleeps"]) == ("SCALED_DOWN", number)
        assert asleep["image_bytes"] > 1 << 20 and asleep["memory_bytes"] == 0
        assert (asleep["reason"], asleep["next_sleep_ns"]) == ("", 0)
        assert asleep["since_ns"] > found["since_ns"]
        reply = pod.get()
        assert (reply["boot_id"], reply["count"]) == (first["boot_id"], number + 1)
        woken = waiting.until("its wake-up", lambda: _running(zeropod, app))
        assert (woken["wakes"], woken["image_bytes"]) == (number, 0)
        assert woken["last_wake_ns"] > asleep["since_ns"]
        assert 0 < woken["last_wake_duration_ns"] < 60 * S


def _running(zeropod: Command, app: Container) -> dict[str, Any] | None:
    found = zeropod.of(app)
    return found if found["state"] == "RUNNING" else None


@pytest.mark.limits
def test_the_memory_that_it_holds(make_pod: MakePod, zeropod: Command) -> None:
    pod = make_pod("stateful", HOUR)
    (app,) = pod.containers
    pod.request("/allocate?mb=64")
    assert zeropod.of(app)["memory_bytes"] > 64 << 20


def test_a_table_for_a_person(make_pod: MakePod, zeropod: Command) -> None:
    pod = make_pod("stateful", {"scaledown-duration": "0"})
    (app,) = pod.containers
    done = zeropod("ps")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(app.id[:12])]
    title = f"{pod.spec.namespace}/{pod.spec.name}/stateful"
    assert line.split()[1:3] == [title, "RUNNING"]
    assert line.endswith("scaledown-duration is 0")
    done = zeropod("inspect", title)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == title
    assert f"{app.id} in namespace k8s.io" in done.stdout


def test_a_wake_by_request(no_leaks: None, make_pod: MakePod, zeropod: Command) -> None:
    pod = make_pod("stateful", HOUR)
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    zeropod.sleep(app)
    done = zeropod("wake", pod.spec.name)
    assert done.returncode == 0 and "woken in" in done.stdout, done.stderr
    assert app.live_pids()
    found = zeropod.inspect(app)
    assert found["last_wake"]["by"] == "zeropod wake"
    assert found["container"]["reason"] == "the last that counts is its wake-up"
    reply = pod.get()
    assert (reply["boot_id"], reply["count"]) == (boot_id, 2)
    assert zeropod("wake", app.id).stdout.endswith(": is awake\n")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def test_an_exec_is_the_reason(
    no_leaks: None, make_pod: MakePod, zeropod: Command, executor: ThreadPoolExecutor
) -> None:
    pod = make_pod("stateful", FAST)
    (app,) = pod.containers
    exec = executor.submit(app.exec, "sh", "-c", "until test -e /go; do sleep 0.05; done")
    keeps = " keeps it awake"
    try:
        found = waiting.until("the exec", lambda: _reason(zeropod, app, keeps))
        assert found["reason"].startswith("exec ") and found["next_sleep_ns"] == 0
        refused = zeropod("sleep", "--force", app.id)
        assert refused.returncode == 1 and refused.stdout == ""
        assert f"cannot sleep: {found['reason']}" in refused.stderr
    finally:
        Path(f"/proc/{app.pid}/root/go").touch()
    assert exec.result().exit_code == 0
    app.wait_asleep()


def _reason(zeropod: Command, app: Container, words: str) -> dict[str, Any] | None:
    found = zeropod.of(app)
    return found if words in found["reason"] else None


def test_an_open_connection_is_cut_off_by_force_only(
    no_leaks: None, make_pod: MakePod, zeropod: Command, node: Node
) -> None:
    pod = make_pod("stateful", HOUR)
    (app,) = pod.containers
    zeropod.wait_watched(app)
    with node.connect(pod.address, 8081) as made:
        assert made.recv(64).startswith(b"stateful ")
        assert zeropod.inspect(app)["open_connections"] == 1
        refused = zeropod("sleep", app.id)
        assert refused.returncode == 1
        assert "1 connection is open, and would be cut off (--force does it" in refused.stderr
        assert app.live_pids()
        assert zeropod("sleep", "--force", app.id).returncode == 0
        assert not app.live_pids()


def test_one_that_never_listens(make_pod: MakePod, zeropod: Command) -> None:
    pod = make_pod("stateful", FAST, command=_SLEEPER, listens=False)
    (app,) = pod.containers
    assert zeropod.of(app)["reason"] == "it listens on no TCP port"
    refused = zeropod("sleep", app.id)
    assert refused.returncode == 1 and "it listens on no TCP port" in refused.stderr


def test_a_failed_checkpoint_is_the_reason(make_pod: MakePod, zeropod: Command) -> None:
    """And the app runs on: it was not even stopped."""
    told = Told(make_pod, annotations=HOUR)
    told.do(_ATTACH)
    app = told.container
    zeropod.wait_watched(app)
    zeropod.wait_alone(app)
    refused = zeropod("sleep", app.id)
    assert refused.returncode == 1 and "shared memory" in refused.stderr
    found = zeropod.of(app)
    assert found["reason"].startswith("backs off after a failed checkpoint: ")
    assert "shared memory" in found["reason"] and found["sleep_errors"] == 1
    assert found["next_sleep_ns"] > time.time_ns()
    assert told.do("7") == 7


def test_min_awake(no_leaks: None, make_pod: MakePod, zeropod: Command) -> None:
    """Only what was woken stays awake for it; who asks for a sleep gets one all the same."""
    pod = make_pod("stateful", {**FAST, "min-awake": "1h"})
    (app,) = pod.containers
    before = pod.get()
    app.wait_asleep()
    after = pod.get()
    assert (after["boot_id"], after["count"]) == (before["boot_id"], 2)
    found = waiting.until("min-awake", lambda: _reason(zeropod, app, "min-awake: "))
    assert 3500 * S < found["next_sleep_ns"] - time.time_ns() <= 3600 * S
    zeropod.sleep(app)


def test_what_is_seen_of_ports_and_probes(
    no_leaks: None, make_pod: MakePod, zeropod: Command
) -> None:
    pod = make_pod("stateful", HOUR)
    (app,) = pod.containers
    zeropod.wait_watched(app)
    pod.get()
    awake = zeropod.inspect(app)
    assert {port["number"] for port in awake["ports"]} == {8080, 8081, 8082}
    assert {port["mode"] for port in awake["ports"]} == {"pass"}
    (web,) = [port for port in awake["ports"] if port["number"] == 8080]
    assert web["of_node"] and web["last_source"] and web["last_activity_ns"]
    assert awake["pid"] in app.live_pids() and awake["engine"] == "runc"
    zeropod.sleep(app)
    for _ in range(3):
        probe = pod.request("/", headers=[("User-Agent", "kube-probe/1.31")])
        assert probe.status == 204
    asleep = zeropod.inspect(app)
    assert {port["mode"] for port in asleep["ports"]} == {"park"}
    assert (asleep["connections"]["probes"], asleep["pid"]) == (3, 0)
    assert asleep["packets"]["redirected"] >= 3
    pod.get()

    def listens() -> dict[str, Any] | None:
        found = zeropod.inspect(app)
        names = [phase["name"] for phase in found["last_wake"]["phases"]]
        return found if {"restored", "listens"} <= set(names) else None

    woken = waiting.until("the phases of its wake-up", listens)
    assert woken["last_wake"]["by"] == "a connection"
    assert all(0 < phase["duration_ns"] < 60 * S for phase in woken["last_wake"]["phases"])


def test_a_tls_connection_from_the_node_counts_and_says_why(
    make_pod: MakePod, zeropod: Command, node: Node
) -> None:
    pod = make_pod("stateful", HOUR)
    (app,) = pod.containers
    zeropod.wait_watched(app)
    with node.connect(pod.address, 8082) as made:
        made.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
        words = "it may be a probe, but TLS cannot be read"
        waiting.until("its reason", lambda: _reason(zeropod, app, words))


def test_sockets_of_shims_that_are_dead_or_hang(
    make_pod: MakePod, zeropod: Command, node: Node
) -> None:
    pods = [make_pod("stateful", HOUR) for _ in range(2)]
    hanging, other = (pod.containers[0] for pod in pods)
    stale = node.path(STATUS_ROOT) / "stale.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(stale))
    shim = pods[0].shim_pid()
    try:
        done = zeropod("ps")
        assert done.returncode == 0 and hanging.id[:12] in done.stdout
        assert done.stderr == f"zeropod: {STATUS_ROOT}/stale.sock: its shim is dead, skipped\n"
        os.kill(shim, signal.SIGSTOP)
        done = zeropod("ps", "--timeout", "2")
        assert done.returncode == 1 and "no answer within 2 s" in done.stderr
        assert other.id[:12] in done.stdout and hanging.id[:12] not in done.stdout
    finally:
        os.kill(shim, signal.SIGCONT)
        stale.unlink()
    assert set(zeropod.ps()) >= {hanging.id, other.id}
