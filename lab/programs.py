"""The BPF programs and links of a process, by bpf(2): found, run on frames, taken off, put back."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lab import kernel

_BPF = 321 if os.uname().machine == "x86_64" else 280
_BY_ID = {"prog_id": 13, "map_id": 14, "link_id": 30}
_TEST_RUN, _INFO, _LINK_CREATE, _LINK_DETACH = 10, 15, 28, 34
_NAME_AT, _INFO_SIZE = 64, 128  # of struct bpf_prog_info
_LINK = struct.Struct("IIIIII")  # the begin of struct bpf_link_info, of a link by TCX
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


@contextmanager
def opened(id: Id) -> Iterator[int]:
    """A descriptor of an object. Raises FileNotFoundError where it is no more."""
    fd, _ = _call(_BY_ID[id.kind], struct.pack("I", id.number))
    try:
        yield fd
    finally:
        os.close(fd)


def _call(command: int, attributes: bytes) -> tuple[int, bytes]:
    """What bpf(2) returns, and the attributes afterwards. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = _libc.syscall(_BPF, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result, buffer.raw


def _info(fd: int) -> bytes:
    info = ctypes.create_string_buffer(_INFO_SIZE)
    _call(_INFO, struct.pack("IIQ", fd, _INFO_SIZE, ctypes.addressof(info)))
    return info.raw


class Result(NamedTuple):
    """``verdict``: what the program returned. ``ns``: per run, on the average."""

    verdict: int
    frame: bytes
    ns: int


class Program:
    """A program, run on frames that are given to it (BPF_PROG_TEST_RUN)."""

    def __init__(self, fd: int, netns: Path) -> None:
        self._fd = fd
        self._netns = netns

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
        with kernel.network_namespace(self._netns):
            _, answer = _call(_TEST_RUN, attributes)
        _, verdict, _, size, _, _, _, ns = struct.unpack_from("iiIIQQII", answer)
        return Result(verdict, out.raw[:size], ns)

    def close(self) -> None:
        os.close(self._fd)


def programs(netns: Path, pid: int | str = "self") -> dict[str, Program]:
    """Those that a process has attached in a namespace, by their names. To be closed."""
    found = {}
    for id in held_ids(pid):
        if id.kind == "prog_id":
            with opened(id) as fd:
                name = _info(fd)[_NAME_AT : _NAME_AT + 16].rstrip(b"\0").decode()
                found[name] = Program(os.dup(fd), netns)
    return found


class Hooks:
    """An interface's programs of a process, which are taken off and put back (TCX alone).

    For good they belong to whoever makes this: the process has lost them.
    """

    def __init__(self, pid: int, netns: Path, ifindex: int) -> None:
        self._netns = netns
        self._ifindex = ifindex
        self._links: list[int] = []
        self._programs: list[tuple[int, int]] = []  # descriptor, where it is attached
        for id in held_ids(pid):
            if id.kind == "link_id":
                with opened(id) as fd:
                    self._take_over(fd)

    def _take_over(self, link: int) -> None:
        _, _, program, _, ifindex, where = _LINK.unpack_from(_info(link))
        if ifindex != self._ifindex:
            return
        with opened(Id("prog_id", program)) as fd:
            self._programs.append((os.dup(fd), where))
        _call(_LINK_DETACH, struct.pack("I", link))

    def put(self) -> None:
        """Have them there. Idempotent."""
        if self._links:
            return
        with kernel.network_namespace(self._netns):
            for program, where in self._programs:
                attributes = struct.pack("IIII", program, self._ifindex, where, 0)
                self._links.append(_call(_LINK_CREATE, attributes)[0])

    def take(self) -> None:
        """Have none there: when this returns, no packet meets them any more. Idempotent."""
        while self._links:
            link = self._links.pop()
            _call(_LINK_DETACH, struct.pack("I", link))
            os.close(link)

    def close(self) -> None:
        self.take()
        while self._programs:
            os.close(self._programs.pop()[0])
