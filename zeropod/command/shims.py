"""The shims of a node, by their sockets: all asked at once, none waited for longer than a bound.

A shim that has died leaves its socket behind; that is said, and no failure. One that hangs, or
refuses, is a `Trouble` that counts as one: what it has is missing from what is shown.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import Message

from zeropod.api import inspect_pb2 as pb
from zeropod.errors import Code, DeadlineExceeded, Unavailable, ZeropodError
from zeropod.ttrpc import Client, RemoteError

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Inspect"].full_name
_AT_ONCE: Final = 32
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a socket. ``harmless``: nothing is missing because of it."""

    path: Path
    text: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass(frozen=True, slots=True)
class Found:
    """A container, and the socket of its shim."""

    path: Path
    container: pb.Container


@dataclass(frozen=True, slots=True)
class Answers:
    found: tuple[Found, ...]
    troubles: tuple[Trouble, ...]


class CannotAsk(ZeropodError):
    """Nothing can be asked at all."""


def sockets(root: Path) -> list[Path]:
    """Those of the shims; none where no shim has run yet. Raises CannotAsk."""
    try:
        return sorted(path for path in root.iterdir() if path.suffix == ".sock")
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = ": run it as root" if error.errno == errno.EACCES else ""
        raise CannotAsk(f"{root}: {error.strerror}{remedy}") from error


async def ask_all(root: Path, timeout_s: float) -> Answers:
    """The containers of all shims below ``root``. Raises CannotAsk."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def ask(path: Path) -> pb.ListResponse | Trouble:
        async with room:
            try:
                return await call(path, "List", pb.ListRequest(), pb.ListResponse, timeout_s)
            except ZeropodError as error:
                return _trouble(path, error, timeout_s)

    paths = sockets(root)
    answers = await asyncio.gather(*map(ask, paths))
    found = (
        Found(path, container)
        for path, answer in zip(paths, answers, strict=True)
        if isinstance(answer, pb.ListResponse)
        for container in answer.containers
    )
    return Answers(
        tuple(sorted(found, key=_order)),
        tuple(answer for answer in answers if isinstance(answer, Trouble)),
    )


async def call(path: Path, method: str, request: Message, answer: type[_M], timeout_s: float) -> _M:
    """Ask one shim.

    Raises:
        ZeropodError: as `ttrpc.Client`; DeadlineExceeded also where it does not even take the
            connection.
    """
    try:
        client = await asyncio.wait_for(Client.connect(str(path)), timeout_s)
    except TimeoutError:
        raise DeadlineExceeded(f"connect {path}: not taken within {timeout_s:g} s") from None
    try:
        return await client.call(SERVICE, method, request, answer, timeout_s=timeout_s)
    finally:
        client.close()


def _trouble(path: Path, error: ZeropodError, timeout_s: float) -> Trouble:
    cause = error.__cause__
    if isinstance(error, DeadlineExceeded):
        text = f"no answer within {timeout_s:g} s: its shim hangs (`ss -xlp` has its process)"
        return Trouble(path, text)
    if isinstance(cause, (ConnectionRefusedError, FileNotFoundError)):
        return Trouble(path, "its shim is dead, skipped", harmless=True)
    if isinstance(cause, PermissionError):
        return Trouble(path, "permission denied: run it as root")
    if isinstance(error, RemoteError) and error.status == Code.UNIMPLEMENTED:
        text = "its shim is of an earlier version, which cannot be asked: make its pod anew"
        return Trouble(path, text)
    if isinstance(error, Unavailable) and os.geteuid():
        return Trouble(path, f"{error}: run it as root")
    return Trouble(path, str(error))


def _order(found: Found) -> tuple[str, ...]:
    one = found.container
    return one.pod_namespace, one.pod_name, one.name, one.id
