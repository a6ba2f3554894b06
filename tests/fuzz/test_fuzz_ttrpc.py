"""A bounded fuzz run on the codec: whatever arrives, nothing hangs, grows or raises."""

from __future__ import annotations

import random

from zeropod.ttrpc.frame import HEADER, MAX_PAYLOAD, Decoder, Frame, FrameType
from zeropod.ttrpc.stream import MAX_STREAMS, Streams

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
