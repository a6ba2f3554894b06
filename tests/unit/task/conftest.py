"""A task service on a real socket, over containers that are fakes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import pytest
from google.protobuf.message import Message

from tests.unit.task.fake import Maker
from zeropod.api import task_pb2 as pb
from zeropod.container.pod import Pod
from zeropod.task.registry import Registry
from zeropod.task.service import TaskService
from zeropod.ttrpc import Client, Server

_M = TypeVar("_M", bound=Message)


@dataclass
class Shim:
    """``call`` speaks as containerd does."""

    client: Client
    maker: Maker
    registry: Registry
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    service: str = "containerd.task.v2.Task"

    async def call(self, method: str, request: Message, response: type[_M]) -> _M:
        return await self.client.call(self.service, method, request, response, timeout_s=30)

    async def create(self, id: str = "c1", bundle: str = "/b") -> pb.CreateTaskResponse:
        request = pb.CreateTaskRequest(id=id, bundle=bundle)
        return await self.call("Create", request, pb.CreateTaskResponse)


@pytest.fixture(params=["v2", "v3"])
async def shim(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shim]:
    maker, registry, ended = Maker(), Registry(), asyncio.Event()
    service = TaskService(cast("Pod", object()), registry, ended.set, create=maker)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "shim"))
    listening.listen()
    server = Server(service.handlers())
    await server.serve(listening)
    client = await Client.connect(str(tmp_path / "shim"))
    name = f"containerd.task.{request.param}.Task"
    yield Shim(client, maker, registry, ended, name)
    client.close()
    await server.close()
