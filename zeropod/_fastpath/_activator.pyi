from collections.abc import Mapping, Sequence
from enum import IntEnum
from os import PathLike
from typing import NamedTuple

class EventKind(IntEnum):
    FIRED = 1
    """The plan was started: ``pid``; ``value`` is a `Cause`."""
    FIRE_FAILED = 2
    """It could not be started: ``value`` is the errno."""
    READY = 3
    """The app listens, the redirect is off."""
    CONNECT_TIMEOUT = 4
    """``value`` connections were given up because the app did not come back."""
    PENDING = 5
    """The first connection waits while nothing may fire."""
    FIRST_BYTE = 6
    """The first byte went to a client after a wake."""

class Cause(IntEnum):
    """For whom a restore was fired."""

    CONNECTION = 1
    REQUEST = 2
    TLS = 3
    """Nobody but connections of TLS from the node, which may be probes."""

class Activation(IntEnum):
    """How what opens a connection to a sleeping app is handed over."""

    AUTO = 0
    """Parked, but spliced where it comes from an address of the node."""
    PARK = 1
    SPLICE = 2

class Mode(IntEnum):
    """What is done with what opens a connection to a port."""

    PASS = 0
    REDIRECT = 1
    PARK = 2
    PARK_ALL = 3

class Unread(IntEnum):
    """Why a connection from the node counts, though it may be a probe's."""

    NO = 0
    TLS = 1
    HTTP2 = 2

class PortView(NamedTuple):
    """A tracked port. ``last_activity_ns``: CLOCK_MONOTONIC; 0 for never, and what follows means
    nothing. ``remote``: whose it was, 16 bytes, IPv4 mapped into IPv6; ``of_node``: whether that is
    an address of the node.
    """

    number: int
    udp: bool
    mode: Mode
    last_activity_ns: int
    remote: bytes
    remote_port: int
    of_node: bool
    unread: Unread

class Event(NamedTuple):
    """``at_ns``: CLOCK_MONOTONIC."""

    kind: EventKind
    group: int
    pid: int
    at_ns: int
    value: int

def clear_filters(netns_fd: int) -> None:
    """Take away the clsact filters of an activator that was killed (kernels without TCX).

    A living activator of the same namespace would lose its own. Raises OSError.
    """

class RestorePlan:
    """A restore that only needs to be fired. Holds copies of all it was given.

    Args:
        ready_path: a file whose appearance says that the processes run. An activator refuses
            (EEXIST) to arm a plan whose file is there already.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str = "/",
        stdio: tuple[int, int, int] = (-1, -1, -1),
        setns: Sequence[int] = (),
        ready_path: str | PathLike[str] | None = None,
    ) -> None: ...
    def close(self) -> None:
        """Let go of the descriptors; one that an activator holds stays until it has fired."""

class Activator:
    """The native activator of one network namespace: a thread, BPF programs, listeners.

    The node's addresses are those of the namespace of the thread that makes it. Every verb raises
    OSError: ENOENT without such a group, EINVAL where its state forbids it; `hold` also E2BIG, when
    there are too many interfaces by now.

    Args:
        udp: there may be ports of UDP, whose datagrams may be large.
        force_clsact: as on a kernel without TCX.
        ignored: networks whose packets wake nobody and count for nobody: address (16 bytes, IPv4
            mapped into IPv6) and bits of it; 256 at most.
    """

    def __init__(
        self,
        netns_fd: int,
        *,
        count_loopback: bool,
        udp: bool = False,
        force_clsact: bool = False,
        ignored: Sequence[tuple[bytes, int]] = (),
    ) -> None: ...
    def fileno(self) -> int: ...
    def events(self) -> list[Event]: ...
    def add_group(
        self,
        ports: Sequence[int],
        *,
        udp_ports: Sequence[int] = (),
        activation: Activation = Activation.AUTO,
        probe_detection: bool,
        probe_buffer_size: int,
        connect_timeout_ns: int,
        proxy_timeout_ns: int,
    ) -> int: ...
    def remove_group(self, group: int) -> None: ...
    def hold(self, group: int) -> None: ...
    def arm(self, group: int, plan: RestorePlan) -> bool: ...
    def wake(self, group: int) -> bool: ...
    def disarm(self, group: int) -> bool: ...
    def awake(self, group: int) -> None: ...
    def drop(self, group: int) -> None: ...
    def keep(self, group: int, fds: Sequence[int]) -> None:
        """Keep copies of sockets until the app's processes run again; in place of those before."""

    def last_activity_ns(self, group: int) -> int: ...
    def last_undecided_ns(self, group: int) -> int:
        """When somebody was heard of last of whom it is not known whether he counts; or 0.

        Who has sent a SYN; or a connection from the node that lives, and does not count: it may be
        a user's who has not spoken yet, or a probe's that waits for its answer.
        """

    def view(self, group: int) -> list[PortView]: ...
    def stats(self, group: int) -> dict[str, int]: ...
    def counters(self) -> dict[str, int]: ...
    def close(self) -> None: ...
