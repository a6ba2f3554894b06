"""Lists of reserved ports, and what a process is bound to."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropod.container.reserve import Bound, bound_by, parse, text


@pytest.mark.parametrize(
    ("ranges", "numbers"),
    [("\n", set()), ("80\n", {80}), ("80,8000-8002\n", {80, 8000, 8001, 8002})],
)
def test_lists_as_the_kernel_writes_them(ranges: str, numbers: set[int]) -> None:
    assert parse(ranges) == numbers
    assert text(numbers) == ranges


@given(st.sets(st.integers(1, 65535), max_size=50))
def test_what_is_written_is_read_again(numbers: set[int]) -> None:
    assert parse(text(numbers)) == numbers


def test_what_a_process_is_bound_to() -> None:
    kinds = [
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
        (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "::"),
    ]
    made, wanted = [], set()
    try:
        for family, kind, address in kinds:
            made.append(socket.socket(family, kind))
            made[-1].bind((address, 0))
            if kind is socket.SOCK_STREAM:
                made[-1].listen()
            wanted.add(Bound(family, kind, address, made[-1].getsockname()[1]))
        made.append(socket.socket())
        made[-1].bind(("127.0.0.1", 0))  # bound only: nobody can connect
        assert wanted <= bound_by([os.getpid()])
        unused = made[-1].getsockname()[1]
        assert unused not in {bound.port for bound in bound_by([os.getpid()])}
    finally:
        for each in made:
            each.close()
    assert not wanted & bound_by([os.getpid()])
