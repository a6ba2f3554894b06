"""The reader of header blocks against an encoder that is not ours: csrc/grpc.c by itself."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

CSRC = Path(__file__).parents[3] / "csrc"
MORE, YES, NO = range(3)
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
RIGHT = {
    ":method": ("POST",),
    ":path": ("/grpc.health.v1.Health/Check",),
    "content-type": ("application/grpc", "application/grpc+proto"),
}
WRONG = {
    ":method": ("GET", "PUT", "post"),
    ":path": ("/", "/index.html", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check2"),
    "content-type": ("", "application/grpc-web", "text/plain"),
}

Classify = Callable[[bytes], int]


class Grpc(ctypes.Structure):
    _fields_ = (("stream", ctypes.c_uint32), ("waits", ctypes.c_bool))


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Classify:
    library = tmp_path_factory.mktemp("grpc") / "grpc.so"
    argv = ["cc", "-std=gnu11", "-shared", "-fPIC", "-o", str(library), str(CSRC / "grpc.c")]
    subprocess.run(argv, check=True)
    native = ctypes.CDLL(str(library)).zp_grpc_classify
    native.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(Grpc))
    return lambda data: int(native(data, len(data), Grpc()))


def _value(name: str) -> st.SearchStrategy[str | None]:
    """Right twice as often as not; None: the field is not there."""
    right = st.sampled_from(RIGHT[name])
    return right | right | st.sampled_from(WRONG[name]) | st.none()


_NAMES = st.sampled_from(
    ["user-agent", "te", "grpc-timeout", "x", "accept", ":scheme", ":authority", "content-length"]
)
_OTHERS = st.lists(st.tuples(_NAMES, st.text(st.characters(max_codepoint=126), max_size=30)))


@settings(max_examples=1000, deadline=None)
@given(
    method=_value(":method"),
    path=_value(":path"),
    kind=_value("content-type"),
    others=_OTHERS,
    huffman=st.booleans(),
    indexed=st.booleans(),
    table=st.sampled_from([None, 0, 128, 65536]),
    order=st.randoms(use_true_random=False),
)
def test_a_block_says_what_was_encoded(
    classify: Classify, method, path, kind, others, huffman, indexed, table, order
) -> None:
    asked = {":method": method, ":path": path, "content-type": kind}
    fields = [(name, value) for name, value in asked.items() if value is not None] + others
    order.shuffle(fields)
    make = HeaderTuple if indexed else NeverIndexedHeaderTuple
    encoder = Encoder()
    if table is not None:
        encoder.header_table_size = table
    block = encoder.encode([make(*field) for field in fields], huffman=huffman)
    head = struct.pack(">I", len(block))[1:] + struct.pack(">BBI", 1, 4, 1)
    expected = len(block) <= 1024 and all(asked[name] in right for name, right in RIGHT.items())
    said = GREETING + head + block
    assert classify(said) == (YES if expected else NO)
    assert classify(said[:-1]) == MORE
