"""Server and client on a real socket: answers, statuses, time-outs, peers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from zeropod.api.task_pb2 import StartRequest, StartResponse
from zeropod.errors import Code, DeadlineExceeded, NotFound, Unavailable
from zeropod.ttrpc import Client, Method, RemoteError, Server
from zeropod.ttrpc.frame import HEADER, MAX_PAYLOAD, Decoder, Frame

Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    servers: list[Server] = []
    clients: list[Client] = []

    async def begin(handler: Callable[[StartRequest], Awaitable[StartResponse]]) -> Client:
        listening = socket.socket(socket.AF_UNIX)
        path = str(tmp_path / f"{len(servers)}.sock")
        listening.bind(path)
        listening.listen()
        server = Server({"s.Task": {"Start": Method(StartRequest, handler)}})
        await server.serve(listening)
        servers.append(server)
        clients.append(await Client.connect(path))
        return clients[-1]

    yield begin
    for client in clients:
        client.close()
    for server in servers:
        await server.close()


async def call(client: Client, **kwargs: float) -> StartResponse:
    return await client.call("s.Task", "Start", StartRequest(id="x"), StartResponse, **kwargs)


async def test_an_answer(serve: Serve) -> None:
    async def start(request: StartRequest) -> StartResponse:
        return StartResponse(pid=len(request.id))

    assert (await call(await serve(start))).pid == 1


async def test_calls_overtake_each_other(serve: Serve) -> None:
    gate = asyncio.Event()

    async def start(request: StartRequest) -> StartResponse:
        if request.id == "slow":
            await gate.wait()
        return StartResponse(pid=7 if request.id == "slow" else 8)

    client = await serve(start)
    slow = asyncio.create_task(
        client.call("s.Task", "Start", StartRequest(id="slow"), StartResponse)
    )
    quick = await client.call("s.Task", "Start", StartRequest(id="quick"), StartResponse)
    assert (quick.pid, slow.done()) == (8, False)
    gate.set()
    assert (await slow).pid == 7


async def test_our_errors_keep_their_code_and_text(serve: Serve) -> None:
    async def start(request: StartRequest) -> StartResponse:
        raise NotFound(f"container {request.id} does not exist")

    with pytest.raises(RemoteError, match="container x does not exist") as caught:
        await call(await serve(start))
    assert caught.value.status == Code.NOT_FOUND


async def test_a_bug_is_unknown_and_the_server_lives(serve: Serve) -> None:
    async def start(request: StartRequest) -> StartResponse:
        raise KeyError("oops")

    client = await serve(start)
    for _ in range(2):
        with pytest.raises(RemoteError, match="KeyError") as caught:
            await call(client)
        assert caught.value.status == Code.UNKNOWN


@pytest.mark.parametrize("name", [("s.Task", "Stop"), ("s.Other", "Start")])
async def test_unknown_methods_are_unimplemented(serve: Serve, name: tuple[str, str]) -> None:
    async def start(request: StartRequest) -> StartResponse:
        return StartResponse()

    client = await serve(start)
    with pytest.raises(RemoteError) as caught:
        await client.call(*name, StartRequest(), StartResponse)
    assert caught.value.status == Code.UNIMPLEMENTED


async def test_a_timeout_answers_but_cancels_nothing(serve: Serve) -> None:
    gate, finished = asyncio.Event(), asyncio.Event()

    async def start(request: StartRequest) -> StartResponse:
        await gate.wait()
        finished.set()
        return StartResponse()

    client = await serve(start)
    with pytest.raises((DeadlineExceeded, RemoteError)):
        await call(client, timeout_s=0.05)
    assert not finished.is_set()
    gate.set()
    await asyncio.wait_for(finished.wait(), 10)


async def test_a_lost_connection_cancels_nothing(serve: Serve) -> None:
    gate, started, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def start(request: StartRequest) -> StartResponse:
        started.set()
        await gate.wait()
        finished.set()
        return StartResponse()

    client = await serve(start)
    pending = asyncio.create_task(call(client))
    await started.wait()
    client.close()
    with pytest.raises(Unavailable):
        await pending
    gate.set()
    await asyncio.wait_for(finished.wait(), 10)


async def test_another_user_is_refused(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "s.sock")
    listening.bind(path)
    listening.listen()
    server = Server({}, uid=4711)
    await server.serve(listening)
    reader, writer = await asyncio.open_unix_connection(path)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        if await reader.read(1) == b"":
            raise ConnectionResetError
    writer.close()
    await server.close()


async def test_garbage_and_oversized_messages_get_a_status(serve: Serve) -> None:
    async def start(request: StartRequest) -> StartResponse:
        return StartResponse(pid=3)

    client = await serve(start)
    path = client._transport.get_extra_info("peername")  # type: ignore[union-attr]
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(Frame(1, 1, 0, b"\xff\xff\xff").encode())
    writer.write(HEADER.pack(MAX_PAYLOAD + 1, 3, 1, 0) + bytes(MAX_PAYLOAD + 1))
    decoder, seen = Decoder(), []
    while len(seen) < 2:
        seen += list(decoder.feed(await reader.read(65536)))
    assert sorted(frame.stream_id for frame in seen) == [1, 3]
    assert (await call(client)).pid == 3
    writer.close()
