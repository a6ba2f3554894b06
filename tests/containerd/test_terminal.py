"""Terminals through containerd, under the stock shim and under ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import keeper, waiting
from lab.pods import Container

from .conftest import MakePod

_HANDLERS = pytest.mark.parametrize("handler", ["runc", "zeropod"])
_LIMIT_S = 120


class Terminal:
    """A terminal with a person before it."""

    def __init__(self, master: int) -> None:
        self._master = master
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        def seen() -> bool:
            try:
                self.shown += os.read(self._master, 65536).decode()
            except (BlockingIOError, OSError):  # EIO: nobody has the other side open
                pass
            return text in self.shown

        try:
            waiting.until(f"{text!r} on the terminal", seen, _LIMIT_S)
        except TimeoutError:
            pytest.fail(f"{text!r} did not come, but: {self.shown[-2000:]!r}")


@contextmanager
def _ctr(app: Container, *argv: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """`ctr` on the node, on a terminal of 100 columns and 30 rows."""
    master, slave = os.openpty()
    subprocess.run(["stty", "cols", "100", "rows", "30"], stdin=slave, check=True)
    os.set_blocking(master, False)
    process = subprocess.Popen(
        app.pod.node.command(["ctr", "--namespace=k8s.io", "tasks", *argv]),
        env=keeper.environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master), process
        process.wait(_LIMIT_S)
    finally:
        process.kill()
        process.wait()
        os.close(master)


@_HANDLERS
def test_an_exec_with_a_terminal(no_leaks: None, make_pod: MakePod, handler: str) -> None:
    pod = make_pod("nginx", handler=handler)
    (app,) = pod.containers
    with _ctr(app, "exec", "--tty", "--exec-id=t1", app.id, "sh") as (terminal, process):
        # The size comes right after the start.
        terminal.type(
            "while [ \"$(stty size)\" = '0 0' ]; do :; done; stty size; tty; echo $((40 + 2))\n"
        )
        terminal.wait_for("30 100")
        terminal.wait_for("/dev/pts/")
        terminal.wait_for("42")
        terminal.type("exit 5\n")
    assert process.returncode == 5
    pod.remove()


@_HANDLERS
def test_a_container_with_a_terminal(no_leaks: None, make_pod: MakePod, handler: str) -> None:
    """It does not sleep, and says what it has to say to its terminal."""
    annotations = {"scaledown-duration": "200ms", "ports-map": "nginx=80"}
    command = ["sh", "-c", "tty; exec nginx -c /etc/nginx/lab.conf"]
    pod = make_pod("nginx", annotations, handler=handler, command=command, tty=True, stdin=True)
    (app,) = pod.containers
    waiting.until("a line of its terminal", lambda: app.log()[:1] == ["/dev/pts/0"])
    assert app.exec("true").exit_code == 0
    assert app.live_pids()
    pod.remove()
