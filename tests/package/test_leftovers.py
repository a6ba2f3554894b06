"""What was killed leaves nothing: the next zygote has it swept, and nothing of who lives."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from lab import waiting
from tests.package.node import Node
from zeropod.shim import bootstrap


def _serve(node: Node, name: str, *, listen: bool) -> tuple[socket.socket, Path]:
    """The socket of a shim's own service, as the stub has none."""
    folder = node.path("/run/zeropod/s")
    folder.mkdir(mode=0o700, exist_ok=True)
    made = socket.socket(socket.AF_UNIX)
    directory = os.open(folder, os.O_PATH)
    try:
        made.bind(f"/proc/self/fd/{directory}/{name}.sock")
    finally:
        os.close(directory)
    if listen:
        made.listen()
    return made, folder / f"{name}.sock"


def test_the_next_zygote_sweeps_what_the_dead_have_left(stub_node: Node) -> None:
    dead, stopped, alive = (stub_node.start(id) for id in ("dead", "stopped", "alive"))
    pids = {id: pid for pid, id in stub_node.shims().items()}
    with ExitStack() as stack:
        services = {}
        for path in (dead, stopped, alive):
            made, file = _serve(stub_node, path.name, listen=path is not dead)
            stack.enter_context(made)
            services[path] = file
        other = stub_node.path("/run/zeropod/z/0123456789abcdef")
        other.mkdir(mode=0o700)
        for name in ("lock", "0.log"):
            (other / name).touch(0o600)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
            gone.bind(str(other / "0.s"))
        stub_node.kill(pids["dead"], *stub_node.zygotes())
        os.kill(pids["stopped"], signal.SIGSTOP)
        assert dead.exists() and services[dead].exists()

        stub_node.start("next")

        for path in (dead, services[dead], other):
            waiting.until(f"the end of {path}", lambda: not path.exists())  # noqa: B023
        waiting.until("the sweeper's end", lambda: not _sweepers(stub_node))
        for path in (stopped, alive):
            assert path.exists() and services[path].exists()
        assert len(stub_node.zygotes()) == 1
        os.kill(pids["stopped"], signal.SIGCONT)
        for path in (stopped, alive):
            assert bootstrap.served(path)


def _sweepers(node: Node) -> list[int]:
    """While there is a zygote: it has this title itself, for the moment of the fork."""
    found = node.processes()
    zygote = any(argv[0] == "zeropod-zygote" for argv in found.values())
    return [pid for pid, argv in found.items() if zygote and argv[0] == "zeropod-leftovers"]


def test_the_sweeper_has_nothing_of_the_zygote(stub_node: Node) -> None:
    """Held up by a lock that somebody else has, it does not keep a killed zygote's socket alive."""
    stub_node.start("a")
    (folder,) = stub_node.path("/run/zeropod/z").iterdir()
    made, _ = _serve(stub_node, "0" * 64, listen=False)
    made.close()
    with ExitStack() as stack:
        shims = stub_node.path("/run/containerd/s")
        stack.enter_context(bootstrap.alone(shims))
        stub_node.kill(*stub_node.zygotes())
        first = stub_node.launch("start", "b")  # it waits for the lock, too
        (sweeper,) = waiting.until("the sweeper", lambda: _sweepers(stub_node) or None)
        fds = Path(f"/proc/{sweeper}/fd")
        waiting.until(
            "the end of its descriptors",
            lambda: not [fd for fd in fds.iterdir() if str(fd.readlink()).startswith("socket:")],
        )
    _, err = first.communicate(timeout=60)
    assert first.returncode == 0, err.decode()
    waiting.until("the sweeper's end", lambda: not _sweepers(stub_node))
    assert list(stub_node.path("/run/zeropod/s").iterdir()) == []
    assert folder.exists()
