"""Shims that answer as they are told, each on a socket of its own below one directory."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zeropod.api import inspect_pb2 as pb
from zeropod.command.shims import SERVICE
from zeropod.errors import FailedPrecondition
from zeropod.ttrpc import Method, Server


class Shim:
    """Serves its containers. ``refusal``: why they do not sleep unless forced."""

    def __init__(self, *containers: pb.Container) -> None:
        self.containers = {one.id: one for one in containers}
        self.refusal = ""
        self.asked: list[str] = []
        self.before_list: Callable[[], Awaitable[Any]] | None = None

    def handlers(self) -> dict[str, dict[str, Method]]:
        return {
            SERVICE: {
                "List": Method(pb.ListRequest, self._list),
                "Get": Method(pb.ContainerRequest, self._get),
                "Wake": Method(pb.ContainerRequest, self._wake),
                "Sleep": Method(pb.SleepRequest, self._sleep),
            }
        }

    async def _list(self, _request: pb.ListRequest) -> pb.ListResponse:
        if self.before_list is not None:
            await self.before_list()
        return pb.ListResponse(containers=self.containers.values())

    async def _get(self, request: pb.ContainerRequest) -> pb.Details:
        return pb.Details(container=self.containers[request.id], engine="runc", pid=4711)

    async def _wake(self, request: pb.ContainerRequest) -> pb.Container:
        self.asked.append(f"wake {request.id}")
        one = self.containers[request.id]
        one.wakes += one.state != "RUNNING"
        one.state, one.last_wake_duration_ns = "RUNNING", 62_100_000
        return one

    async def _sleep(self, request: pb.SleepRequest) -> pb.Container:
        self.asked.append(f"sleep {request.id}{' by force' * request.force}")
        if self.refusal and not request.force:
            raise FailedPrecondition(self.refusal)
        one = self.containers[request.id]
        one.sleeps += one.state != "SCALED_DOWN"
        one.state, one.last_sleep_duration_ns, one.image_bytes = "SCALED_DOWN", 91_000_000, 7 << 20
        return one


class Node:
    """``root``: where the sockets are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._servers: list[Server] = []
        self._sockets: list[socket.socket] = []

    def _run(self, work: Awaitable[Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)  # type: ignore[arg-type]

    def listening(self, name: str, backlog: int = 16) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(self.root / f"{name}.sock"))
        made.listen(backlog)
        return made

    def serve(self, name: str, handlers: Any) -> None:
        server = Server(handlers)
        self._servers.append(server)
        self._run(server.serve(self.listening(name)))

    def add(self, name: str, *containers: pb.Container) -> Shim:
        """A shim that answers."""
        shim = Shim(*containers)
        self.serve(name, shim.handlers())
        return shim

    def add_dead(self, name: str) -> Path:
        self.listening(name).close()
        return self.root / f"{name}.sock"

    def add_hanging(self, name: str) -> Path:
        """One that is stopped: the kernel takes the connection, and nobody answers."""
        self._sockets.append(self.listening(name))
        return self.root / f"{name}.sock"

    def close(self) -> None:
        for server in self._servers:
            self._run(server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for made in self._sockets:
            made.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_container() -> Callable[..., pb.Container]:
    def make(id: str = "abc1" * 16, **fields: Any) -> pb.Container:
        given = {
            "name": "app",
            "pod_name": "web-1",
            "pod_namespace": "default",
            "namespace": "k8s.io",
            "state": "RUNNING",
            **fields,
        }
        return pb.Container(id=id, **given)

    return make
