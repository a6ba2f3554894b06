"""A bounded fuzz run on the codec: whatever arrives, nothing hangs, grows or raises."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from zeropod.api.task_pb2 import StartRequest, StartResponse
from zeropod.api.ttrpc_pb2 import Request
from zeropod.ttrpc import Client, Method, Server
from zeropod.ttrpc.frame import HEADER, MAX_PAYLOAD, Decoder, Frame, FrameType
from zeropod.ttrpc.stream import MAX_STREAMS, Streams

if TYPE_CHECKING:
    import pytest

ROUNDS = 3000


def mutated(rng: random.Random) -> bytes:
    wire = bytearray()
    for _ in range(rng.randrange(1, 5)):
        payload = rng.randbytes(rng.randrange(0, 64))
        kind = rng.choice([FrameType.REQUEST, FrameType.DATA, FrameType.RESPONSE, 200])
        wire += Frame(rng.randrange(0, 20), kind, rng.randrange(0, 8), payload).encode()
    for _ in range(rng.randrange(0, 4)):
        wire[rng.randrange(len(wire))] = rng.randrange(256)
    return bytes(wire)


def test_codec_survives_mutated_and_random_bytes() -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    for turn in range(ROUNDS):
        decoder, streams = Decoder(), Streams()
        wire = mutated(rng) if turn % 3 else rng.randbytes(rng.randrange(0, 200))
        position = 0
        while position < len(wire):
            step = rng.randrange(1, 30)
            for frame in decoder.feed(wire[position : position + step]):
                streams.receive(frame)
            position += step
        assert decoder.held <= HEADER.size + MAX_PAYLOAD, f"seed {seed}"
        assert len(streams) <= MAX_STREAMS, f"seed {seed}"


def damaged_request(rng: random.Random, stream_id: int) -> bytes:
    argument = StartRequest(id="x" * rng.randrange(0, 40)).SerializeToString()
    request = Request(
        service="s.Task",
        method="Start",
        payload=argument,
        timeout_nano=rng.randrange(-(2**63), 2**63),
    )
    payload = bytearray(request.SerializeToString())
    for _ in range(rng.randrange(0, 3)):
        payload[rng.randrange(len(payload))] = rng.randrange(256)
    frame = bytearray(Frame(stream_id, FrameType.REQUEST, 0, bytes(payload)).encode())
    if rng.random() < 0.1:
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    return bytes(frame)


async def test_server_survives_damaged_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing a peer sends may reach the loop's exception handler or harm another connection."""

    async def start(request: StartRequest) -> StartResponse:
        return StartResponse(pid=1)

    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    server = Server({"s.Task": {"Start": Method(StartRequest, start)}})
    await server.serve(listening)
    client = await Client.connect(str(tmp_path / "s"))
    with caplog.at_level(logging.ERROR):
        for _ in range(40):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            for turn in range(50):
                writer.write(damaged_request(rng, 2 * turn + 1))
            writer.write_eof()
            while await reader.read(65536):
                pass
            writer.close()
            answer = await client.call("s.Task", "Start", StartRequest(), StartResponse)
            assert answer.pid == 1, f"seed {seed}"
    assert not caplog.records, f"seed {seed}"
    client.close()
    await server.close()
