"""What a scaler needs of the container that it scales, and of what is around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from zeropod._fastpath._activator import Event, PortView
from zeropod.activator import ports
from zeropod.checkpoint.engine import Stdio
from zeropod.config import Settings
from zeropod.container.process import Init
from zeropod.container.report import Outcome
from zeropod.container.state import Verb
from zeropod.container.wake import Trigger
from zeropod.oci.bundle import Bundle
from zeropod.oci.reaper import Exit, Reaper


class Group(Trigger, Protocol):
    """What is needed of `activator.PortGroup`."""

    def disarm(self) -> bool: ...
    def awake(self) -> None: ...
    def keep(self, fds: Sequence[int]) -> None: ...
    def drop(self) -> None: ...
    def close(self) -> None: ...
    def last_activity_ns(self) -> int: ...
    def last_undecided_ns(self) -> int: ...
    def view(self) -> list[PortView]: ...
    def stats(self) -> dict[str, int]: ...
    def counters(self) -> dict[str, int]: ...


class Sleeper(Protocol):
    """What is needed of `Container`."""

    id: str
    bundle: Bundle
    settings: Settings
    init: Init
    reaper: Reaper
    lock: asyncio.Lock

    def stdio_for_restore(self) -> Stdio: ...
    def move(self, verb: Verb) -> None: ...
    def adopt(self, pid: int) -> None: ...
    def publish_exit(self, exit: Exit) -> None: ...
    def report(self, outcome: Outcome, duration_ns: int = 0, log: str = "") -> None: ...


FindPorts = Callable[[int, ports.Declared], Awaitable[frozenset[int]]]
OpenGroup = Callable[[frozenset[int], Callable[[Event], None]], Group]
