"""What shims have answered: as tables for a person, as plain values for a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import Message

from zeropod.api import inspect_pb2 as pb
from zeropod.command.choose import title
from zeropod.command.text import NOTHING, cut, duration, milliseconds, size, table

_HEADER: Final = (
    *("ID", "CONTAINER", "STATE", "SINCE", "MEMORY", "IMAGES"),
    *("WAKES", "LAST WAKE", "SLEEPS IN", "REASON"),
)
_RIGHT: Final = frozenset({"SINCE", "MEMORY", "IMAGES", "WAKES", "LAST WAKE", "SLEEPS IN"})
_SHORT: Final = 12
_MODES: Final = {
    "pass": "openers pass",
    "redirect": "openers are accepted and held",
    "park": "openers are parked, the node's accepted",
    "park_all": "openers are parked",
}
_UNREAD: Final = {"tls": "TLS", "http2": "HTTP/2"}
_PHASES: Final = {
    "listens": "listens after",
    "first byte": "first byte after",
    "restored": "the restore has ended after",
}


def plain(message: Message) -> dict[str, Any]:
    """Every field by its name, also those that are empty; numbers stay numbers."""
    return {field.name: _plain(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return dict(sorted(value.items()))
    return [_plain(item) for item in value]


def containers(found: Sequence[pb.Container], now_ns: int, width: int = 0) -> list[str]:
    """The lines of `zeropod ps`. ``now_ns``: unix time; ``width``: of the terminal, 0: any."""
    rows = [_row(one, now_ns) for one in found]
    return table(_HEADER, rows, right=_RIGHT, width=width)


def _row(one: pb.Container, now_ns: int) -> tuple[str, ...]:
    return (
        one.id[:_SHORT],
        title(one),
        one.state,
        duration(now_ns - one.since_ns),
        _memory(one),
        size(one.image_bytes) if one.image_bytes else NOTHING,
        str(one.wakes),
        milliseconds(one.last_wake_duration_ns),
        _sleeps_in(one, now_ns),
        _one_line(one.reason) or NOTHING,
    )


def _memory(one: pb.Container) -> str:
    """Where nothing is counted (no memory controller), nothing is claimed."""
    if one.memory_bytes or one.state == "SCALED_DOWN":
        return size(one.memory_bytes)
    return NOTHING


def _sleeps_in(one: pb.Container, now_ns: int) -> str:
    return duration(one.next_sleep_ns - now_ns) if one.next_sleep_ns else NOTHING


def _one_line(text: str) -> str:
    return " ".join(text.split())


def details(found: pb.Details, now_ns: int, width: int = 0) -> list[str]:
    """The lines of `zeropod inspect`."""
    entries = list(_entries(found, now_ns))
    wide = max(len(name) for name, _ in entries)
    lines = [f"{name:<{wide}}  {text}" for name, text in entries]
    return [cut(line, width) for line in (title(found.container), *(f"  {x}" for x in lines))]


def _entries(found: pb.Details, now_ns: int) -> Iterator[tuple[str, str]]:
    one = found.container
    pid = f", process {found.pid}" if found.pid else ""
    yield "id", f"{one.id} in namespace {one.namespace}"
    yield "bundle", found.bundle
    yield "state", f"{one.state} for {duration(now_ns - one.since_ns)}{pid}"
    yield "reason", _one_line(one.reason) or NOTHING
    yield "sleeps in", _sleeps_in(one, now_ns)
    yield "settings", _settings(found)
    yield "memory", _memory(one)
    yield "images", size(one.image_bytes) if one.image_bytes else NOTHING
    yield "sleeps", _tally(one.sleeps, one.sleep_errors, one.last_sleep_ns, now_ns)
    yield "wakes", _tally(one.wakes, one.wake_errors, one.last_wake_ns, now_ns)
    yield "last wake", _last_wake(found)
    for port in found.ports:
        yield f"port {port.number}/{port.protocol}", _port(port, now_ns)
    yield "connections", f"{found.open_connections} open; {_counts(found.connections)}"
    yield "packets", _counts(found.packets)


def _settings(found: pb.Details) -> str:
    words = [f"scaledown-duration {duration(found.scaledown_duration_ns)}"]
    if found.min_awake_ns:
        words.append(f"min-awake {duration(found.min_awake_ns)}")
    words += [f"activation {found.activation}", f"engine {found.engine or NOTHING}"]
    return ", ".join(words)


def _tally(count: int, errors: int, last_ns: int, now_ns: int) -> str:
    failed = f", {errors} failed" if errors else ""
    last = f", the last {duration(now_ns - last_ns)} ago" if last_ns else ""
    return f"{count}{failed}{last}"


def _last_wake(found: pb.Details) -> str:
    if not found.last_wake.by:
        return NOTHING
    phases = (
        f"{_PHASES.get(phase.name, phase.name)} {milliseconds(phase.duration_ns)}"
        for phase in found.last_wake.phases
    )
    return f"by {found.last_wake.by}: {', '.join(phases)}"


def _port(port: pb.Port, now_ns: int) -> str:
    mode = _MODES.get(port.mode, port.mode)
    if not port.last_source:
        return f"{mode}; never used"
    whose = f"{port.last_source}{' of the node' if port.of_node else ''}"
    unread = f", {_UNREAD.get(port.unread, port.unread)}" if port.unread else ""
    return f"{mode}; last used {duration(now_ns - port.last_activity_ns)} ago by {whose}{unread}"


def _counts(found: Mapping[str, int]) -> str:
    """Those that are not 0."""
    told = [f"{name} {count}" for name, count in sorted(found.items()) if count]
    return ", ".join(told) or "nothing counted"
