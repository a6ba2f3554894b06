"""What users set: the pod annotations, parsed once into a frozen object, and the node's settings.

Parsing is strict: a malformed value raises `errors.AnnotationError`, which names the annotation,
the value and the expected form, and the container is refused. Nothing is ever ignored silently:
annotations of ours that this version does not act on are listed in `Settings.unsupported`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from zeropod.errors import AnnotationError, InvalidArgument

PREFIX: Final = "zeropod.ctrox.dev/"

# Annotations that belong to others but decide what we do.
CRI_CONTAINER_TYPE: Final = "io.kubernetes.cri.container-type"
CRI_CONTAINER_NAME: Final = "io.kubernetes.cri.container-name"
CRI_SANDBOX_ID: Final = "io.kubernetes.cri.sandbox-id"
CRI_SANDBOX_NAME: Final = "io.kubernetes.cri.sandbox-name"
CRI_SANDBOX_NAMESPACE: Final = "io.kubernetes.cri.sandbox-namespace"
RUNC_GROUP: Final = "io.containerd.runc.v2.group"

STATUS_ROOT: Final = Path("/run/zeropod/s")
"""Where every shim of a node has its socket for the manager, and for `zeropod ps`."""

# Names of the product that this version accepts, checks nothing of, and does not act on.
_UNSUPPORTED: Final = frozenset({"migrate", "live-migrate", "disable-migrate-data"})

_MAX_NETWORKS: Final = 256
_MAX_PROBE_BUFFER: Final = 64 * 1024
_DURATION_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_MAX_DURATION_NS: Final = 2**63 - 1
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NUMBER: Final = re.compile(r"[0-9]{1,5}")

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)


class RestoreFailure(StrEnum):
    """What follows when a restore has failed for good."""

    RESTART = "restart"
    FAIL = "fail"


class Activation(StrEnum):
    """How what opens a connection to a sleeping container is handed over.

    ``auto`` parks it, but accepts and splices where it comes from the node itself.
    """

    AUTO = "auto"
    PARK = "park"
    SPLICE = "splice"


class StopAsleep(StrEnum):
    """What SIGTERM does to a container that is scaled down."""

    RESTORE = "restore"
    DISCARD = "discard"


class ExecProbes(StrEnum):
    """What an exec does to a container that is scaled down.

    ``cached`` answers a command with its last result where that was a success.
    """

    WAKE = "wake"
    CACHED = "cached"


@dataclass(frozen=True, slots=True)
class Settings:
    """The annotations of one container. Durations are nanoseconds.

    ``ports`` is None where they are to be detected; UDP ports are never detected. ``pod_udp``: some
    container of the pod has UDP ports. ``min_awake_ns``: what a wake-up is good for at least.
    ``ignore_sources``: networks, as 16 bytes (IPv4 mapped into IPv6) and how many bits of them
    count. ``unsupported`` names annotations that were given and have no effect.
    """

    enabled: bool = True
    ports: tuple[int, ...] | None = None
    udp_ports: tuple[int, ...] = ()
    pod_udp: bool = False
    activation: Activation = Activation.AUTO
    ignore_sources: tuple[tuple[bytes, int], ...] = ()
    scaledown_duration_ns: int = 60 * 1_000_000_000
    min_awake_ns: int = 0
    pre_dump: bool = False
    disable_checkpointing: bool = False
    disable_probe_detection: bool = False
    probe_buffer_size: int = 1024
    connect_timeout_ns: int = 5 * 1_000_000_000
    proxy_timeout_ns: int = 0
    restore_failure: RestoreFailure = RestoreFailure.RESTART
    stop_asleep: StopAsleep = StopAsleep.RESTORE
    exec_probes: ExecProbes = ExecProbes.WAKE
    unsupported: tuple[str, ...] = ()

    @property
    def scales(self) -> bool:
        """Whether this container is ever scaled down."""
        return self.enabled and self.scaledown_duration_ns > 0

    @classmethod
    def from_annotations(
        cls, annotations: Mapping[str, str], *, container_name: str = ""
    ) -> Settings:
        """Parse the annotations of a pod for the container ``container_name``.

        All of them are checked, also those that concern other containers of the pod only.

        Raises:
            AnnotationError: a malformed value.
        """
        given = {
            key.removeprefix(PREFIX): (key, value)
            for key, value in annotations.items()
            if key.startswith(PREFIX)
        }

        def read(name: str, parse: Callable[[str, str], _T], default: _T) -> _T:
            if name not in given:
                return default
            return parse(*given[name])

        names = read("container-names", _parse_names, frozenset[str]())
        tcp, udp = read("ports-map", _parse_ports_map, _NO_PORTS)
        base = cls()
        return cls(
            enabled=not names or container_name in names,
            ports=tcp.get(container_name),
            udp_ports=udp.get(container_name, ()),
            pod_udp=any(udp.values()),
            activation=read("activation", _parse_choice(Activation), base.activation),
            ignore_sources=read("ignore-sources", _parse_networks, ()),
            scaledown_duration_ns=read(
                "scaledown-duration", parse_duration, base.scaledown_duration_ns
            ),
            min_awake_ns=read("min-awake", parse_duration, 0),
            pre_dump=read("pre-dump", _parse_bool, False),
            disable_checkpointing=read("disable-checkpointing", _parse_bool, False),
            disable_probe_detection=read("disable-probe-detection", _parse_bool, False),
            probe_buffer_size=read("probe-buffer-size", _parse_buffer_size, base.probe_buffer_size),
            connect_timeout_ns=read("connect-timeout", parse_duration, base.connect_timeout_ns),
            proxy_timeout_ns=read("proxy-timeout", parse_duration, base.proxy_timeout_ns),
            restore_failure=read(
                "restore-failure", _parse_choice(RestoreFailure), base.restore_failure
            ),
            stop_asleep=read("stop-asleep", _parse_choice(StopAsleep), base.stop_asleep),
            exec_probes=read("exec-probes", _parse_choice(ExecProbes), base.exec_probes),
            unsupported=tuple(sorted(given[name][0] for name in given if name in _UNSUPPORTED)),
        )


_PortsMap: TypeAlias = tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]
_NO_PORTS: Final[_PortsMap] = ({}, {})


def parse_duration(key: str, value: str) -> int:
    """A Go duration ("10s", "1m30s", "1.5h", "0") in nanoseconds, not negative."""
    text = value.strip()
    if text == "0":
        return 0
    total, end = 0.0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != end:
            break
        total += float(part[1]) * _UNIT_NS[part[2]]
        end = part.end()
    if not text or end != len(text) or total > _MAX_DURATION_NS:
        raise AnnotationError(key, value, "a duration such as 10s, 1m30s or 0")
    return int(total)


def _parse_bool(key: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise AnnotationError(key, value, "true or false")


def _parse_buffer_size(key: str, value: str) -> int:
    if _NUMBER.fullmatch(value) and 1 <= int(value) <= _MAX_PROBE_BUFFER:
        return int(value)
    raise AnnotationError(key, value, f"a number of bytes from 1 to {_MAX_PROBE_BUFFER}")


def _parse_choice(kind: type[_E]) -> Callable[[str, str], _E]:
    def parse(key: str, value: str) -> _E:
        try:
            return kind(value)
        except ValueError:
            raise AnnotationError(key, value, " or ".join(kind)) from None

    return parse


def _parse_networks(key: str, value: str) -> tuple[tuple[bytes, int], ...]:
    expected = f"networks separated by commas, such as 10.0.0.0/8,fd00::/8; {_MAX_NETWORKS} at most"
    found = []
    for item in filter(None, (part.strip() for part in value.split(","))):
        try:
            network = ipaddress.ip_network(item)
        except ValueError as error:
            raise AnnotationError(key, value, f"{expected} ({error})") from None
        v4 = network.version == 4
        address = (b"\0" * 10 + b"\xff\xff" if v4 else b"") + network.network_address.packed
        found.append((address, network.prefixlen + (96 if v4 else 0)))
    if len(found) > _MAX_NETWORKS:
        raise AnnotationError(key, value, expected)
    return tuple(found)


def _parse_names(key: str, value: str) -> frozenset[str]:
    if not value.strip():
        return frozenset()
    names = [name.strip() for name in value.split(",")]
    if not all(_NAME.fullmatch(name) for name in names):
        raise AnnotationError(key, value, "container names separated by commas, such as web,api")
    return frozenset(names)


def _parse_ports_map(key: str, value: str) -> _PortsMap:
    tcp: dict[str, tuple[int, ...]] = {}
    udp: dict[str, tuple[int, ...]] = {}
    expected = "ports by container, such as web=80,81;dns=53/udp"
    if not value.strip():
        return _NO_PORTS
    for entry in value.split(";"):
        name, equals, ports = entry.strip().partition("=")
        if not equals or not _NAME.fullmatch(name) or name in tcp:
            raise AnnotationError(key, value, expected)
        tcp[name], udp[name] = (), ()
        for item in ports.split(","):
            number, slash, protocol = item.strip().partition("/")
            if slash and protocol not in ("tcp", "udp"):
                raise AnnotationError(key, value, expected)
            if not (_NUMBER.fullmatch(number) and 0 < int(number) < 65536):
                raise AnnotationError(key, value, expected)
            table = udp if protocol == "udp" else tcp
            table[name] = (*table[name], int(number))
    return tcp, udp


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """``etc/shim.json`` beside the ``bin`` directory of the installation.

    ``image_root`` is ours: where checkpoint images lie, on a disk and not in memory.
    """

    probe_binary_name: str = "kubelet"
    tracker_ignore_localhost: bool = True
    image_root: str = "/var/lib/zeropod/i"

    @classmethod
    def load(cls, path: Path | None = None) -> NodeSettings:
        """Read the file; without one everything has its default.

        Raises:
            InvalidArgument: not JSON, an unknown key or a value of the wrong type.
        """
        path = path or Path(sys.prefix) / "etc" / "shim.json"
        try:
            text = path.read_text()
        except FileNotFoundError:
            return cls()
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"{path}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise InvalidArgument(f"{path}: expected an object, found {type(data).__name__}")
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in _NODE_KEYS:
                known = ", ".join(sorted(_NODE_KEYS))
                raise InvalidArgument(f"{path}: {key!r} is not known, expected one of {known}")
            field, kind = _NODE_KEYS[key]
            if not isinstance(value, kind):
                raise InvalidArgument(f"{path}: {key}: expected a {kind.__name__}, found {value!r}")
            values[field] = value
        return replace(cls(), **values)


_NODE_KEYS: Final[Mapping[str, tuple[str, type]]] = {
    "probeBinaryName": ("probe_binary_name", str),
    "trackerIgnoreLocalhost": ("tracker_ignore_localhost", bool),
    "imageRoot": ("image_root", str),
}
