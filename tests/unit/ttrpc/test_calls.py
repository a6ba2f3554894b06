"""Server and client on a real socket: answers, statuses, time-outs, peers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from zeropod.api.task_pb2 import StartRequest, StartResponse
from zeropod.api.ttrpc_pb2 import Request, Response
from zeropod.errors import Code, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from zeropod.ttrpc import Client, Method, RemoteError, Server
from zeropod.ttrpc import server as server_module
from zeropod.ttrpc.frame import HEADER, MAX_PAYLOAD, Decoder, Frame, FrameType

Serve = Callable[..., Awaitable[Client]]
BOUND_S = 30


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The loop of the shim, and the one whose behaviour is the reference."""
    if request.param == "uvloop":
        return uvloop.EventLoopPolicy()
    return asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    servers: list[Server] = []
    clients: list[Client] = []

    async def begin(
        handler: Callable[[StartRequest], Awaitable[StartResponse]], *, waits: bool = False
    ) -> Client:
        listening = socket.socket(socket.AF_UNIX)
        path = str(tmp_path / f"{len(servers)}.sock")
        listening.bind(path)
        listening.listen()
        server = Server({"s.Task": {"Start": Method(StartRequest, handler, waits)}})
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


def path_of(client: Client) -> str:
    assert client._transport is not None
    return str(client._transport.get_extra_info("peername"))


class Blocked:
    """A handler that blocks until it is let go, and says how it ended."""

    def __init__(self) -> None:
        self.begun, self.gate, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.cancelled = False

    async def __call__(self, request: StartRequest) -> StartResponse:
        self.begun.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()
        return StartResponse(pid=5)


async def test_a_wait_ends_with_its_connection(serve: Serve) -> None:
    blocked = Blocked()
    client = await serve(blocked, waits=True)
    pending = asyncio.create_task(call(client))
    await blocked.begun.wait()
    client.close()
    await asyncio.wait_for(blocked.ended.wait(), BOUND_S)
    assert blocked.cancelled
    with pytest.raises(Unavailable):
        await pending


async def test_a_wait_ends_with_its_timeout(serve: Serve) -> None:
    blocked = Blocked()
    with pytest.raises((DeadlineExceeded, RemoteError)):
        await call(await serve(blocked, waits=True), timeout_s=0.05)
    await asyncio.wait_for(blocked.ended.wait(), BOUND_S)
    assert blocked.cancelled


async def test_a_timeout_is_answered_by_the_server(serve: Serve) -> None:
    blocked = Blocked()
    reader, writer = await asyncio.open_unix_connection(path_of(await serve(blocked)))
    envelope = Request(service="s.Task", method="Start", timeout_nano=20_000_000)
    writer.write(Frame(1, FrameType.REQUEST, 0, envelope.SerializeToString()).encode())
    decoder, answers = Decoder(), []
    while not answers:
        answers += list(decoder.feed(await reader.read(4096)))
    assert isinstance(answers[0], Frame)
    status = Response.FromString(answers[0].payload).status
    assert (status.code, status.message) == (
        Code.DEADLINE_EXCEEDED,
        "s.Task/Start took longer than 0.02 s",
    )
    blocked.gate.set()  # its late answer must not be sent: the stream has ended
    await blocked.ended.wait()
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("waits", [False, True])
async def test_close_lets_calls_answer_and_ends_waits(tmp_path: Path, waits: bool) -> None:
    blocked = Blocked()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    server = Server({"s.Task": {"Start": Method(StartRequest, blocked, waits)}})
    await server.serve(listening)
    client = await Client.connect(str(tmp_path / "s"))
    pending = asyncio.create_task(call(client))
    await blocked.begun.wait()
    closing = asyncio.create_task(server.close(BOUND_S))
    if waits:
        with pytest.raises(Unavailable):
            await pending
    else:
        blocked.gate.set()
        assert (await pending).pid == 5
    await closing
    assert blocked.cancelled is waits


async def test_close_cuts_off_what_is_late(tmp_path: Path) -> None:
    blocked = Blocked()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    server = Server({"s.Task": {"Start": Method(StartRequest, blocked)}})
    await server.serve(listening)
    client = await Client.connect(str(tmp_path / "s"))
    pending = asyncio.create_task(call(client))
    await blocked.begun.wait()
    await server.close(0.01)
    assert blocked.cancelled
    with pytest.raises((RemoteError, Unavailable)):
        await pending


async def test_bytes_under_way_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_UNDER_WAY", 1000)
    blocked = Blocked()
    client = await serve(blocked)
    long = StartRequest(id="x" * 600)
    first = asyncio.create_task(client.call("s.Task", "Start", long, StartResponse))
    await blocked.begun.wait()
    with pytest.raises(RemoteError, match="under way") as caught:
        await client.call("s.Task", "Start", long, StartResponse)
    assert caught.value.status == Code.RESOURCE_EXHAUSTED
    blocked.gate.set()
    assert (await first).pid == 5
    assert (await client.call("s.Task", "Start", long, StartResponse)).pid == 5


async def test_connections_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    blocked = Blocked()
    blocked.gate.set()
    client = await serve(blocked)
    assert (await call(client)).pid == 5
    with pytest.raises(Unavailable):
        await call(await Client.connect(path_of(client)))
    assert (await call(client)).pid == 5


async def test_a_peer_that_reads_nothing_is_hung_up_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_UNREAD", 100_000)

    async def start(request: StartRequest) -> StartResponse:
        raise NotFound("x" * 10_000)

    path = path_of(await serve(start))
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        deaf.connect(path)
        envelope = Request(service="s.Task", method="Start").SerializeToString()
        with pytest.raises(ConnectionError):
            for number in range(2000):
                frame = Frame(2 * number + 1, FrameType.REQUEST, 0, envelope)
                await loop.sock_sendall(deaf, frame.encode())


async def test_a_request_too_long_for_a_frame_is_not_sent(serve: Serve) -> None:
    async def start(request: StartRequest) -> StartResponse:
        return StartResponse(pid=1)

    client = await serve(start)
    with pytest.raises(InvalidArgument, match="exceeds"):
        await client.call("s.Task", "Start", StartRequest(id="x" * MAX_PAYLOAD), StartResponse)
    assert (await call(client)).pid == 1


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="connect"):
        await Client.connect(str(tmp_path / "none"))


async def test_an_answer_that_is_none_fails_its_call_alone(tmp_path: Path) -> None:
    async def serve_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        while data := await reader.read(4096):
            for frame in decoder.feed(data):
                payload = b"\xff\xff" if frame.stream_id == 1 else b"\x12\x02\x08\x07"
                writer.write(Frame(frame.stream_id, FrameType.RESPONSE, 0, payload).encode())
        writer.close()

    server = await asyncio.start_unix_server(serve_garbage, str(tmp_path / "s"))
    client = await Client.connect(str(tmp_path / "s"))
    with pytest.raises(RemoteError, match="not a ttrpc response") as caught:
        await call(client)
    assert caught.value.status == Code.INTERNAL
    assert (await call(client)).pid == 7
    client.close()
    server.close()


# -- streams ---------------------------------------------------------------------------------


Stream = Callable[[StartRequest], AsyncIterator[StartResponse]]


@pytest.fixture
async def serve_stream(tmp_path: Path) -> AsyncIterator[Callable[[Stream], Awaitable[Client]]]:
    made: list[tuple[Server, Client]] = []

    async def begin(stream: Stream) -> Client:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / "stream.sock"))
        listening.listen()
        server = Server({"s.Task": {"Watch": Method(StartRequest, waits=True, stream=stream)}})
        await server.serve(listening)
        made.append((server, await Client.connect(str(tmp_path / "stream.sock"))))
        return made[-1][1]

    yield begin
    for server, client in made:
        client.close()
        await server.close()


def watch(client: Client) -> AsyncIterator[StartResponse]:
    return client.stream("s.Task", "Watch", StartRequest(id="x"), StartResponse)


async def test_a_stream_of_answers_and_its_end(
    serve_stream: Callable[[Stream], Awaitable[Client]],
) -> None:
    async def count(_request: StartRequest) -> AsyncIterator[StartResponse]:
        for number in range(3):  # 0 makes an empty message
            yield StartResponse(pid=number)

    client = await serve_stream(count)
    for _ in range(2):
        assert [found.pid async for found in watch(client)] == [0, 1, 2]


async def test_a_stream_that_fails(serve_stream: Callable[[Stream], Awaitable[Client]]) -> None:
    async def count(_request: StartRequest) -> AsyncIterator[StartResponse]:
        yield StartResponse(pid=1)
        raise NotFound("no more")

    found = []
    with pytest.raises(RemoteError, match="no more") as caught:
        async for message in watch(await serve_stream(count)):
            found.append(message.pid)
    assert found == [1]
    assert caught.value.status == Code.NOT_FOUND


async def test_a_stream_ends_with_its_reader(
    serve_stream: Callable[[Stream], Awaitable[Client]],
) -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    async def for_ever(_request: StartRequest) -> AsyncIterator[StartResponse]:
        try:
            begun.set()
            yield StartResponse(pid=1)
            await asyncio.Event().wait()
        finally:
            over.set()

    client = await serve_stream(for_ever)
    reader = asyncio.create_task(anext(watch(client)))  # type: ignore[arg-type]
    await begun.wait()
    assert (await reader).pid == 1
    client.close()
    await asyncio.wait_for(over.wait(), 10)


async def test_a_stream_whose_server_goes_away(
    serve_stream: Callable[[Stream], Awaitable[Client]],
) -> None:
    async def for_ever(_request: StartRequest) -> AsyncIterator[StartResponse]:
        yield StartResponse(pid=1)
        await asyncio.Event().wait()

    client = await serve_stream(for_ever)
    stream = watch(client)
    assert (await anext(stream)).pid == 1
    client.close()
    with pytest.raises(Unavailable):
        await anext(stream)
