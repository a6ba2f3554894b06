"""OOM kills are told as the stock shim tells them: when they happen, before the exit they cause.

The same is done to a pod of either shim, and what containerd publishes is compared. Each step waits
for its own event, so none can hide in another.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import keeper, waiting
from lab.node import Node
from lab.pods import Container, Pod

from .conftest import MakePod
from .test_sleep import keeps

_MIB = 1 << 20
_TOO_MUCH = "x = b'x' * (100 << 20)"


class Events:
    """What containerd publishes of one container, in order."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, app: Container) -> list[str]:
        """The topics of its OOM kills, and of init's exit."""
        found = []
        for line in self._file.read_text().splitlines():
            _, _, _, _, _, topic, body = line.split(" ", 6)
            event = json.loads(body)
            if topic == "/tasks/oom" and event["container_id"] == app.id:
                found.append("oom")
            elif topic == "/tasks/exit" and event.get("id") == app.id:
                found.append(f"exit {event['exit_status']}")
        return found

    def wait(self, app: Container, count: int) -> None:
        waiting.until(f"event {count} of {app.id}", lambda: len(self.of(app)) >= count, 60)


@contextmanager
def recorded(node: Node, file: Path) -> Iterator[Events]:
    with file.open("wb") as output:
        ctr = subprocess.Popen(
            node.command(["ctr", "--namespace=k8s.io", "events"]),
            env=keeper.environment(),
            stdout=output,
        )
    try:
        yield Events(file)
    finally:
        ctr.kill()
        ctr.wait()


def _outgrown(app: Container) -> None:
    """A process beside init takes more than the container may have; init lives on."""
    assert app.exec("/usr/bin/python3", "-c", _TOO_MUCH).exit_code == 137


def _ended(pod: Pod, events: Events, kills: int) -> list[str]:
    """Init itself takes too much. Returns all that was told."""
    (app,) = pod.containers
    with pytest.raises(ConnectionError):
        pod.get("/allocate?mb=100")
    assert app.wait_exited() == 137
    events.wait(app, kills + 2)
    return events.of(app)


@pytest.mark.limits
def test_each_kill_is_told_at_once_as_the_stock_shim_does(
    no_leaks: None, node: Node, make_pod: MakePod, tmp_path: Path
) -> None:
    with recorded(node, tmp_path / "events") as events:
        stock = make_pod("stateful", handler="runc", memory_limit=60 * _MIB)
        pod = make_pod("stateful", {"scaledown-duration": "2s"}, memory_limit=60 * _MIB)
        (app,) = pod.containers
        before = pod.get()
        for kills in (1, 2, 3):
            _outgrown(stock.containers[0])
            events.wait(stock.containers[0], kills)
            _outgrown(app)
            events.wait(app, kills)
            app.wait_asleep()
        assert keeps(before, pod.get())
        app.wait_asleep()
        assert events.of(app) == ["oom"] * 3
        told = _ended(pod, events, 3)
        assert told == ["oom"] * 4 + ["exit 137"]
        assert sorted(told) == sorted(_ended(stock, events, 3))
        pod.remove()
        stock.remove()
