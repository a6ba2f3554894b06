"""How a container stands, for whoever looks at it: why it is awake, when it sleeps, who is there.

Nothing of this is kept: it is found out when somebody asks, from the activity that the kernel side
has noted and from what the scaler waits for.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zeropod._fastpath._activator import PortView, Unread
from zeropod.activator import ports
from zeropod.container.idle import FORCE, Reason, Wait
from zeropod.container.phase import Phase
from zeropod.container.state import State
from zeropod.errors import FailedPrecondition

if TYPE_CHECKING:
    from zeropod.container.container import Container
    from zeropod.container.scaler import Scaler

_LAST_NS: Final = 2**63 - 1
_UNREAD: Final = {Unread.TLS: "TLS", Unread.HTTP2: "HTTP/2"}


@dataclass(frozen=True, slots=True)
class Standing:
    """``reason``: why it is awake; "" where it is not. ``sleeps_ns``: unix time; 0: not known."""

    reason: str = ""
    sleeps_ns: int = 0


def standing(container: Container) -> Standing:
    """Of a container in any state."""
    scaler = container.scaler
    if container.state_now not in (State.RUNNING, State.PAUSED):
        return Standing()
    if scaler is None:
        return Standing(container.scaling_off_reason)
    if scaler.phase is not Phase.AWAKE:
        return Standing(scaler.reason)
    wait = scaler.why_awake()
    words = _words(scaler, wait)
    if scaler.damped and wait.reason is not Reason.HELD:
        words += f"; {scaler.damped}"
    return Standing(words, unix_ns(wait.until_ns))


def unix_ns(monotonic_ns: int) -> int:
    """The wall clock's time then, as far as it is known now; 0 stays 0. In 63 bits."""
    return monotonic_ns and min(time.time_ns() - time.monotonic_ns() + monotonic_ns, _LAST_NS)


def view(scaler: Scaler | None) -> list[PortView]:
    """Its tracked ports; none where it does not scale, or has ended."""
    if scaler is None or scaler.group is None:
        return []
    with contextlib.suppress(OSError, ValueError):  # it is just ending
        return scaler.group.view()
    return []


def source(port: PortView) -> str:
    """Whose its last activity was."""
    address = ipaddress.IPv6Address(port.remote)
    if address.ipv4_mapped is not None:
        return f"{address.ipv4_mapped}:{port.remote_port}"
    return f"[{address}]:{port.remote_port}"


def open_connections(container: Container) -> int:
    """Of its tracked ports; none while it sleeps."""
    pid = container.init.live_pid
    numbers = {port.number for port in view(container.scaler) if not port.udp}
    return ports.connections(pid, numbers) if pid and numbers else 0


async def put_to_sleep(container: Container, *, force: bool) -> None:
    """Have it sleep now, due or not; ``force``: also where somebody is there.

    Raises:
        FailedPrecondition: why it cannot.
    """
    scaler = container.scaler
    if scaler is None or scaler.phase in (Phase.FINDING, Phase.UNSCALED):
        raise FailedPrecondition(standing(container).reason or "it does not run")
    await scaler.past(Phase.DUMPING, Phase.WAKING)
    if not force and (count := open_connections(container)):
        are = "1 connection is" if count == 1 else f"{count} connections are"
        raise FailedPrecondition(f"{are} open, and would be cut off ({FORCE})")
    await scaler.sleep(force=force)


async def wake(container: Container) -> None:
    """Have its processes run. Raises RestoreFailed or FailedPrecondition."""
    if container.state_now in (State.STOPPED, State.DELETED):
        raise FailedPrecondition("it has ended")
    if container.state_now is State.CREATED:
        raise FailedPrecondition("it was not started")
    if container.state_now is State.PAUSED:
        raise FailedPrecondition("it is paused")
    if container.scaler is not None:
        await container.scaler.ensure_awake("zeropod wake")


def _words(scaler: Scaler, wait: Wait) -> str:
    match wait.reason:
        case Reason.HELD:
            return f"{wait.what} keeps it awake"
        case Reason.PUT_OFF:
            return f"{wait.what} was sent, and it is left its time"
        case Reason.MIN_AWAKE:
            return "min-awake: it was woken a short while ago"
        case Reason.UNDECIDED:
            return "somebody opens a connection, or has one from the node and has not spoken yet"
        case Reason.BACK_OFF:
            return f"backs off after a failed checkpoint: {scaler.reason}"
        case Reason.PACKET:
            return _packet(scaler)
        case Reason.EVENT:
            return f"the last that counts is {wait.what}"


def _packet(scaler: Scaler) -> str:
    last = max(view(scaler), key=lambda port: port.last_activity_ns, default=None)
    if last is None or not last.last_activity_ns:
        return "a connection waits for the app to listen"
    words = f"the last packet was {source(last)}'s"
    if last.of_node:
        words += ", of the node"
    if last.unread in _UNREAD:
        words += f"; it may be a probe, but {_UNREAD[last.unread]} cannot be read"
    return words
