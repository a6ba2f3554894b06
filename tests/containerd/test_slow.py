"""A runtime that takes longer for a delete than containerd waits, which is ten seconds.

containerd gives up and asks again. The task has ended once, with its code, and nothing is left.
For a `delete` that it executes for a dead shim it waits five, and then calls the pod removed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import keeper, waiting
from lab.cri import PodSpec
from lab.faults import RUNC, wrapped
from lab.node import Node
from lab.pods import Container, Pod

from .conftest import MakePod

_NEXT = Path("/run/lab-slow")
_SLOW = """
case " $* " in
*" delete "*) if rmdir {next} 2>/dev/null; then sleep {seconds}; fi ;;
esac
"""
_LONG_S = 120
_NEVER = {"scaledown-duration": "1h"}


def _slow(seconds: int) -> str:
    return _SLOW.format(next=_NEXT, seconds=seconds)


class Events:
    """What containerd publishes."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, topic: str, id: str) -> list[dict[str, object]]:
        """Those of a task, and not of its execs but for their beginning."""
        found = []
        for line in self._file.read_text().splitlines(keepends=True):
            _, _, body = line.partition(f" {topic} ")
            if body.endswith("\n"):
                event = json.loads(body)
                if id == event["container_id"] == event.get("id", id):
                    found.append(event)
        return found


@contextmanager
def _recorded(node: Node, app: Container, file: Path) -> Iterator[Events]:
    """From a moment on at which an event of the container has been seen."""
    with file.open("wb") as out:
        argv = node.command(["ctr", "--namespace=k8s.io", "events"])
        ctr = subprocess.Popen(argv, env=keeper.environment(), stdout=out)
    events = Events(file)

    def seen() -> bool:
        app.exec("true")
        return bool(events.of("/tasks/exec-started", app.id))

    try:
        waiting.until("the first event", seen, _LONG_S)
        yield events
    finally:
        ctr.kill()
        ctr.wait()


@pytest.mark.parametrize("whose", ["container", "sandbox"])
def test_a_delete_that_takes_too_long(
    no_leaks: None, node: Node, make_pod: MakePod, tmp_path: Path, whose: str
) -> None:
    pod = make_pod("stateful", _NEVER)
    (app,) = pod.containers
    with wrapped(node, RUNC, _slow(13)), _recorded(node, app, tmp_path / "events") as events:
        if whose == "container":
            id, status = app.id, 3
            node.path(_NEXT).mkdir()
            with pytest.raises(OSError):
                pod.get("/exit?code=3")
            assert app.wait_exited(_LONG_S) == status
        else:
            id, status = pod.id, 137
            app.stop()
            app.remove()
            node.path(_NEXT).mkdir()
            pod.node.cri.stop_pod(id)
        waiting.until("the slow delete", lambda: not node.path(_NEXT).exists(), _LONG_S)
        waiting.until(
            "the end of the task", lambda: events.of("/tasks/delete", id) or None, _LONG_S
        )
        pod.remove()
        other = make_pod("nginx", _NEVER)  # what was published before it has been told
        other.remove()
        (last,) = other.containers
        waiting.until(
            "the last event", lambda: events.of("/tasks/delete", last.id) or None, _LONG_S
        )
        assert [event["exit_status"] for event in events.of("/tasks/exit", id)] == [status]
        assert len(events.of("/tasks/delete", id)) == 1


def test_a_pod_is_gone_when_the_delete_of_its_dead_shim_is_done(no_leaks: None, node: Node) -> None:
    pod = Pod(node, PodSpec("alone", cgroup_parent=node.cgroup_parent))
    with wrapped(node, RUNC, _slow(8)):
        node.path(_NEXT).mkdir()
        os.kill(pod.shim_pid(), signal.SIGKILL)
        pod.remove()
        assert not node.path(_NEXT).exists()
