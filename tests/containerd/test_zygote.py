"""The zygote is killed at each of its steps: no start is lost, none is doubled, no pod notices."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lab import cgroups, processes, waiting
from lab.node import Node
from lab.pods import Pod
from zeropod.shim import bootstrap

from .conftest import MakePod
from .test_sleep import FAST

_TITLE = "zeropod-zygote"
_LAUNCHER = "containerd-shim-zeropod-v2"
_LONG_S = 120


def _titled(title: str, last: str = "") -> set[int]:
    """Processes of the node with this name and last argument."""
    found = set()
    for pid in cgroups.processes():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode().split("\0")
        except OSError:
            continue
        if Path(line[0]).name == title and (not last or line[-1] == last):
            found.add(pid)
    return found


def _zygote() -> int:
    """The only process of its name: what it forks has another one in the end."""
    (pid,) = waiting.until("one zygote", lambda: z if len(z := _titled(_TITLE)) == 1 else None)
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    waiting.until("the zygote's end", lambda: not processes.alive(pid))


@contextmanager
def _starting(make_pod: MakePod) -> Iterator[Future[Pod]]:
    """A pod on its way."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(make_pod, "nginx", {"scaledown-duration": "1h"})


def _is_whole(pod: Pod) -> None:
    """It answers, and has one shim, which a new zygote's pods leave alone."""
    assert pod.request(port=80).status == 200
    shim = pod.shim_pid()
    assert processes.alive(shim)
    assert pod.containers[0].exec("echo", "alive").stdout == b"alive\n"


def _shims() -> set[int]:
    return _titled(_LAUNCHER)


def test_killed_before_it_forks(no_leaks: None, make_pod: MakePod) -> None:
    """The launcher has connected, and nobody has taken its request."""
    other = make_pod("stateful", FAST)
    zygote = _zygote()
    os.kill(zygote, signal.SIGSTOP)
    with _starting(make_pod) as start:
        waiting.until("a launcher", lambda: _titled(_LAUNCHER, "start") or None, _LONG_S)
        _kill(zygote)
        pod = start.result(_LONG_S)
    _is_whole(pod)
    assert _shims() == {pod.shim_pid(), other.shim_pid()}
    assert other.get()


def test_killed_when_it_has_forked(no_leaks: None, node: Node, make_pod: MakePod) -> None:
    """Its child is held up by a lock, and goes on alone."""
    other = make_pod("stateful", FAST)
    zygote = _zygote()
    with _starting(make_pod) as start:
        with bootstrap.alone(node.path(bootstrap.SOCKET_ROOT)):
            waiting.until("a child", lambda: len(_titled(_TITLE)) > 1, _LONG_S)
            _kill(zygote)
        pod = start.result(_LONG_S)
    _is_whole(pod)
    assert _shims() == {pod.shim_pid(), other.shim_pid()}
    assert other.get()


def test_killed_while_pods_live(no_leaks: None, make_pod: MakePod) -> None:
    """One that sleeps wakes with its memory, and the next start makes another zygote."""
    asleep = make_pod("stateful", FAST)
    before = asleep.get()
    asleep.containers[0].wait_asleep()
    zygote = _zygote()
    _kill(zygote)
    now = asleep.get()
    assert (now["boot_id"], now["count"]) == (before["boot_id"], 2)
    pod = make_pod("nginx", FAST)
    _is_whole(pod)
    assert _zygote() != zygote
    pod.remove()
    asleep.containers[0].wait_asleep()
