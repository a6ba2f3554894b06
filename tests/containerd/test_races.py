"""Several who want different things of a pod at once; docs/activation.md, "Races"."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import waiting
from lab.container_images import STATEFUL
from lab.cri import ContainerSpec
from lab.pods import Container, Pod

from .conftest import MakePod, bounded
from .test_sleep import FAST, keeps

_OTHER = """
import json, secrets, socketserver
boot_id, count = secrets.token_hex(8), 0

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global count
        while self.rfile.readline().strip():
            pass
        count += 1
        body = json.dumps({"boot_id": boot_id, "count": count}).encode()
        head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
        self.request.sendall(head + body)

socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("", 9090), Handler).serve_forever(3600)
"""
_CRASHES = """
import os, pathlib, runpy, socketserver, threading
exit, pause = pathlib.Path("/go/exit"), threading.Event()
accept = socketserver.TCPServer.get_request

def look():
    if exit.exists():
        os._exit(int(exit.read_text()))

def get_request(self):
    look()
    return accept(self)

def watch():
    while not pause.wait(0.001):
        look()

socketserver.TCPServer.get_request = get_request
threading.Thread(target=watch, daemon=True).start()
runpy.run_path("/app/stateful.py", run_name="__main__")
"""

way = pytest.mark.parametrize("activation", ["park", "splice"])


def _two(make_pod: MakePod, activation: str) -> tuple[Pod, dict[int, Container]]:
    """A pod with two containers that sleep, each with a memory of its own, by their ports."""
    pod = make_pod("stateful", {**FAST, "activation": activation})
    (first,) = pod.containers
    spec = ContainerSpec("other", STATEFUL.reference, command=["python3", "-u", "-c", _OTHER])
    other = pod.add(spec)
    pod.wait_for_port(9090)
    return pod, {8080: first, 9090: other}


@way
def test_two_containers_are_woken_in_the_same_moment(
    no_leaks: None, make_pod: MakePod, activation: str
) -> None:
    pod, both = _two(make_pod, activation)
    before = {port: pod.get(port=port) for port in both}
    together = threading.Barrier(2)

    def ask(port: int) -> dict[str, object]:
        together.wait()
        return pod.get(port=port)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for one in both.values():
                one.wait_asleep()
            after = dict(zip(both, pool.map(ask, both), strict=True))
            assert all(keeps(before[port], after[port]) for port in both)
            before = after
    pod.remove()


@way
def test_one_container_is_woken_while_another_goes_down(
    no_leaks: None, make_pod: MakePod, activation: str
) -> None:
    pod, both = _two(make_pod, activation)
    before = {port: pod.get(port=port) for port in both}

    def ask(port: int) -> None:
        after = pod.get(port=port)
        assert keeps(before[port], after)
        before[port] = after

    for going_down, asleep in ((8080, 9090), (9090, 8080)) * 3:
        for one in both.values():
            one.wait_asleep()
        ask(going_down)
        store = both[going_down].image_store()
        waiting.until("its dump", lambda: any(store.glob("*/images/*.img")))  # noqa: B023
        ask(asleep)
        ask(going_down)
    pod.remove()


@way
def test_a_pod_is_removed_while_openers_wait(
    no_leaks: None, make_pod: MakePod, activation: str
) -> None:
    """Nobody hangs: they are refused or reset, but for who had been served before."""
    pod = make_pod("stateful", {**FAST, "activation": activation})
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    app.wait_asleep()
    store = app.image_store()
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(pod.get) for _ in range(20)]
        waiting.until("a restore", lambda: any(store.glob("*/work/restore-1/restore.log")))
        with bounded("removal"):
            app.stop(0)
            assert app.wait_exited() == 137
            app.remove()
        for one in asked:
            error = one.exception()
            if error is None:
                assert one.result()["boot_id"] == boot_id
            else:
                assert isinstance(error, ConnectionError), error
    pod.remove()


@way
def test_an_app_that_crashes_as_soon_as_it_is_back(
    no_leaks: None, make_pod: MakePod, tmp_path: Path, activation: str
) -> None:
    """As one that crashes awake: its own code is told, and no other life begins."""
    mounts = {"/go": tmp_path}
    command = ["python3", "-u", "-c", _CRASHES]
    pod = make_pod("stateful", {**FAST, "activation": activation}, command=command, mounts=mounts)
    (app,) = pod.containers
    pod.get()
    app.wait_asleep()
    (tmp_path / "exit").write_text("7")
    with pytest.raises(ConnectionError):
        pod.get()
    assert app.wait_exited() == 7
    assert not app.live_pids()
    pod.remove()
