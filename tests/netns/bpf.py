"""BPF objects by bpf(2): which a process holds, whether they still exist, what programs do."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_BPF = 321 if os.uname().machine == "x86_64" else 280
_BY_ID = {"prog_id": 13, "map_id": 14, "link_id": 30}
_TEST_RUN, _INFO = 10, 15
_NAME_AT, _INFO_SIZE = 64, 128  # of struct bpf_prog_info
_SKB_SIZE, _SKB_MARK, _SKB_IFINDEX = 192, 8, 40  # of struct __sk_buff
_ROOM = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class Id(NamedTuple):
    kind: str
    number: int


def held_ids(pid: int | str = "self") -> set[Id]:
    """Programs, maps and links that a process has descriptors of."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                kind, _, value = line.partition(":")
                if kind in _BY_ID:
                    found.add(Id(kind, int(value)))
    return found


def _call(command: int, attributes: bytes) -> tuple[int, bytes]:
    """What bpf(2) returns, and the attributes afterwards. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = _libc.syscall(_BPF, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result, buffer.raw


def exists(id: Id) -> bool:
    try:
        fd, _ = _call(_BY_ID[id.kind], struct.pack("I", id.number))
    except FileNotFoundError:
        return False
    os.close(fd)
    return True


def wait_gone(ids: set[Id], seconds: float = 60) -> None:
    """The kernel frees them a moment after the last descriptor."""
    deadline = time.monotonic() + seconds
    while ids := {id for id in ids if exists(id)}:
        assert time.monotonic() < deadline, f"still there: {ids}"
        os.sched_yield()


class Result(NamedTuple):
    """``verdict``: what the program returned. ``ns``: per run, on the average."""

    verdict: int
    frame: bytes
    ns: int


class Program:
    """One of this process's programs, run on frames that are given to it (BPF_PROG_TEST_RUN)."""

    def __init__(self, fd: int, netns_fd: int) -> None:
        self._fd = fd
        self._netns_fd = netns_fd

    def run(self, frame: bytes, *, ifindex: int, mark: int = 0, repeat: int = 1) -> Result:
        """In the pod's namespace, as if it came from (or went to) one of its interfaces."""
        data = ctypes.create_string_buffer(frame, len(frame))
        out = ctypes.create_string_buffer(_ROOM)
        skb = bytearray(_SKB_SIZE)
        struct.pack_into("I", skb, _SKB_MARK, mark)
        struct.pack_into("I", skb, _SKB_IFINDEX, ifindex)
        context = ctypes.create_string_buffer(bytes(skb), _SKB_SIZE)
        attributes = struct.pack(
            "IIIIQQIIIIQQ",
            *(self._fd, 0, len(frame), _ROOM, ctypes.addressof(data), ctypes.addressof(out)),
            *(repeat, 0, _SKB_SIZE, 0, ctypes.addressof(context), 0),
        )
        with inside(self._netns_fd):
            _, answer = _call(_TEST_RUN, attributes)
        _, verdict, _, size, _, _, _, ns = struct.unpack_from("iiIIQQII", answer)
        return Result(verdict, out.raw[:size], ns)

    def close(self) -> None:
        os.close(self._fd)


def programs(netns_fd: int) -> dict[str, Program]:
    """Those that this process has attached, by their names. To be closed."""
    found = {}
    for kind, number in held_ids():
        if kind == "prog_id":
            fd, _ = _call(_BY_ID[kind], struct.pack("I", number))
            info = ctypes.create_string_buffer(_INFO_SIZE)
            _call(_INFO, struct.pack("IIQ", fd, _INFO_SIZE, ctypes.addressof(info)))
            name = info.raw[_NAME_AT : _NAME_AT + 16].rstrip(b"\0").decode()
            found[name] = Program(fd, netns_fd)
    return found


@contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """The calling thread, for a moment, in another network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _libc.setns(netns_fd, 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _libc.setns(home, 0) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(home)
