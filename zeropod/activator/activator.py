"""The activator of a pod, for Python: opens the native one and hands its events out by group."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from zeropod._fastpath import _activator
from zeropod._fastpath._activator import Activator, Event, PortView, RestorePlan
from zeropod.activator.ports import Declared
from zeropod.config import Activation, Settings
from zeropod.errors import ActivatorError

_REMEDIES: Final = {
    errno.EPERM: "CAP_BPF and CAP_NET_ADMIN are needed",
    errno.ENOENT: "zeropod/_fastpath/redirector.bpf.o is missing: install the package again",
    errno.EINVAL: "the kernel lacks what the programs need, Linux 5.10 or newer",
}
_ACTIVATION: Final = {
    Activation.AUTO: _activator.Activation.AUTO,
    Activation.PARK: _activator.Activation.PARK,
    Activation.SPLICE: _activator.Activation.SPLICE,
}


class PodActivator:
    """One per network namespace; owned by the pod. Made by `open`, ended by `close`."""

    def __init__(self, native: Activator, loop: asyncio.AbstractEventLoop) -> None:
        self._native = native
        self._loop = loop
        self._fd = native.fileno()
        self._handlers: dict[int, Callable[[Event], None]] = {}
        loop.add_reader(self._fd, self._dispatch)

    @classmethod
    def open(
        cls,
        netns_path: str,
        *,
        count_loopback: bool,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
    ) -> PodActivator:
        """Load the BPF programs and start the native loop.

        ``settings``: of any container of the pod; only what concerns all of them is used.

        Raises:
            ActivatorError: names the namespace, the step that failed and the remedy.
        """
        try:
            netns_fd = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ActivatorError(f"network namespace {netns_path}: {error.strerror}") from error
        try:
            native = Activator(
                netns_fd,
                count_loopback=count_loopback,
                udp=settings.pod_udp,
                ignored=settings.ignore_sources,
            )
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "")
            text = f"activator for {netns_path}: {error.strerror}"
            raise ActivatorError(f"{text} ({remedy})" if remedy else text) from error
        finally:
            os.close(netns_fd)
        return cls(native, loop)

    def add(
        self, ports: Sequence[int], settings: Settings, on_event: Callable[[Event], None]
    ) -> PortGroup:
        """Track TCP ports of a container and the UDP ports that its settings declare.

        ``on_event`` hears of them on the event loop.

        Raises:
            ActivatorError: a port belongs to another container of the pod, or there are too many.
        """
        names = str(Declared(frozenset(ports), frozenset(settings.udp_ports)))
        try:
            number = self._native.add_group(
                ports,
                udp_ports=settings.udp_ports,
                activation=_ACTIVATION[settings.activation],
                probe_detection=not settings.disable_probe_detection,
                probe_buffer_size=settings.probe_buffer_size,
                connect_timeout_ns=settings.connect_timeout_ns,
                proxy_timeout_ns=settings.proxy_timeout_ns,
            )
        except OSError as error:
            reasons = {
                errno.EEXIST: "another container of the pod has one of them",
                errno.E2BIG: "there are none, or more than 64",
            }
            reason = reasons.get(error.errno or 0, error.strerror)
            raise ActivatorError(f"track ports {names}: {reason}") from error
        self._handlers[number] = on_event
        return PortGroup(self, self._native, number)

    def counters(self) -> dict[str, int]:
        """What the BPF programs have counted, by reason."""
        return self._native.counters()

    def forget(self, number: int) -> None:
        self._handlers.pop(number, None)

    def close(self) -> None:
        """Detach, end the thread, reset what is held. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1
            self._native.close()

    def _dispatch(self) -> None:
        for event in self._native.events():
            handler = self._handlers.get(event.group)
            if handler is not None:
                handler(event)


class PortGroup:
    """The ports of one container. States and verbs are those of csrc/group.c.

    A verb that the state forbids raises OSError EINVAL.
    """

    __slots__ = ("_closed", "_native", "_number", "_owner")

    def __init__(self, owner: PodActivator, native: Activator, number: int) -> None:
        self._owner = owner
        self._native = native
        self._number = number
        self._closed = False

    def hold(self) -> None:
        """Redirect and hold new connections; nothing fires."""
        self._native.hold(self._number)

    def arm(self, plan: RestorePlan) -> bool:
        """The first user fires ``plan``. True when one that was held did so at once."""
        return self._native.arm(self._number, plan)

    def wake(self) -> bool:
        """Fire by request. True when this call did."""
        return self._native.wake(self._number)

    def disarm(self) -> bool:
        """Take the plan back. False when it had fired: its event has been queued."""
        return self._native.disarm(self._number)

    def awake(self) -> None:
        """The app is there or coming: connect what is held as it listens."""
        self._native.awake(self._number)

    def keep(self, fds: Sequence[int]) -> None:
        """Have copies of sockets closed when the app's processes run again, not later."""
        if not self._closed:
            self._native.keep(self._number, fds)

    def drop(self) -> None:
        """Refuse what is held and redirect no more."""
        if not self._closed:
            self._native.drop(self._number)

    def close(self) -> None:
        """Track the ports no more. Idempotent."""
        if not self._closed:
            self._closed = True
            self._owner.forget(self._number)
            # The activator may be closed already, with everything that was in it.
            with contextlib.suppress(ValueError):
                self._native.remove_group(self._number)

    def last_activity_ns(self) -> int:
        """CLOCK_MONOTONIC; 0 for never."""
        return self._native.last_activity_ns(self._number)

    def last_undecided_ns(self) -> int:
        """Of live connections from the node that do not count (yet). CLOCK_MONOTONIC; or 0."""
        return self._native.last_undecided_ns(self._number)

    def view(self) -> list[PortView]:
        """Its ports as they are now. Raises OSError or ValueError when they are not tracked."""
        return self._native.view(self._number)

    def stats(self) -> dict[str, int]:
        return self._native.stats(self._number)

    def counters(self) -> dict[str, int]:
        """What the BPF programs of the whole pod have counted, by reason."""
        return self._owner.counters()
