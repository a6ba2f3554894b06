"""Runtime options of a Create request, in the two types that containerd sends.

`containerd.runc.v1.Options` comes for ``runtime_type = "io.containerd.runc.v2"``; for every other
type the CRI sends `runtimeoptions.v1.Options`, whose TOML has the same names. What is not
understood is an error that names it: an option that is ignored would surprise much later.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-not-found]

from zeropod.api.runc_options_pb2 import CheckpointOptions
from zeropod.api.runc_options_pb2 import Options as RuncOptions
from zeropod.api.runtimeoptions_pb2 import Options as TomlOptions
from zeropod.errors import InvalidArgument
from zeropod.oci.runtime import RuntimeOptions

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

_MAX_TOML: Final = 1 << 20
_MAX_ID: Final = 2**32 - 1
_NO_CRIU_PATH: Final = "is not supported: put CRIU's directory into containerd's PATH"

_TYPES: Final = frozenset({RuncOptions.DESCRIPTOR.full_name, TomlOptions.DESCRIPTOR.full_name})
_KEYS: Final[Mapping[str, tuple[str, type]]] = {
    "BinaryName": ("binary_name", str),
    "Root": ("root", str),
    "SystemdCgroup": ("systemd_cgroup", bool),
    "NoPivotRoot": ("no_pivot_root", bool),
    "NoNewKeyring": ("no_new_keyring", bool),
    "ShimCgroup": ("shim_cgroup", str),
    "IoUid": ("io_uid", int),
    "IoGid": ("io_gid", int),
    "CriuImagePath": ("criu_image_path", str),
    "CriuWorkPath": ("criu_work_path", str),
}
_UNSUPPORTED: Final = frozenset({"CriuPath"})
"""Known, and an error unless empty: containerd 1.x writes every key into its default file."""
_IGNORED: Final = frozenset({"TypeUrl", "ConfigPath", "TaskApiAddress", "TaskApiVersion"})
"""containerd's own: what it sends in which type, and where it finds a task that it has no shim
for."""


def is_known(options: AnyMessage) -> bool:
    """Whether it is of one of the two types."""
    return options.type_url.rpartition("/")[2] in _TYPES


def decode(options: AnyMessage) -> RuntimeOptions:
    """The options in an Any; an empty one has every default.

    Raises:
        InvalidArgument: an unknown type, key or value; names it.
    """
    name = options.type_url.rpartition("/")[2]
    try:
        if not name:
            return RuntimeOptions()
        if name == RuncOptions.DESCRIPTOR.full_name:
            return _from_runc(RuncOptions.FromString(options.value))
        if name == TomlOptions.DESCRIPTOR.full_name:
            return _from_toml(TomlOptions.FromString(options.value))
    except DecodeError as error:
        raise InvalidArgument(f"runtime options: not a valid {name}: {error}") from error
    raise InvalidArgument(f"runtime options: type {name} is not known")


def checkpoint(options: AnyMessage) -> tuple[list[str], str]:
    """(the runtime's flags, CRIU's work directory or "") of a Checkpoint request.

    Raises:
        InvalidArgument: options of another type.
    """
    name = options.type_url.rpartition("/")[2]
    if name not in ("", CheckpointOptions.DESCRIPTOR.full_name):
        raise InvalidArgument(f"checkpoint options: type {name} is not known")
    try:
        given = CheckpointOptions.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"checkpoint options: not a valid {name}: {error}") from error
    flags = [flag for flag, wanted in _checkpoint_flags(given) if wanted]
    for kind in given.empty_namespaces:
        flags += ["--empty-ns", kind]
    if given.cgroups_mode:
        flags += ["--manage-cgroups-mode", given.cgroups_mode]
    return flags, given.work_path


def _checkpoint_flags(given: CheckpointOptions) -> tuple[tuple[str, bool], ...]:
    return (
        ("--leave-running", not given.exit),
        ("--tcp-established", given.open_tcp),
        ("--ext-unix-sk", given.external_unix_sockets),
        ("--shell-job", given.terminal),
        ("--file-locks", given.file_locks),
    )


def _from_runc(message: RuncOptions) -> RuntimeOptions:
    if message.criu_path:
        raise InvalidArgument(f"runtime options: criu_path {message.criu_path!r} {_NO_CRIU_PATH}")
    for field in UnknownFieldSet(message):
        raise InvalidArgument(f"runtime options: field {field.field_number} is not known")
    return RuntimeOptions(
        binary_name=message.binary_name or "runc",
        root=message.root,
        systemd_cgroup=message.systemd_cgroup,
        no_pivot_root=message.no_pivot_root,
        no_new_keyring=message.no_new_keyring,
        shim_cgroup=message.shim_cgroup,
        io_uid=message.io_uid,
        io_gid=message.io_gid,
        criu_image_path=message.criu_image_path,
        criu_work_path=message.criu_work_path,
    )


def _from_toml(message: TomlOptions) -> RuntimeOptions:
    where = message.config_path or "config_body"
    body = message.config_body
    if not body and message.config_path:
        try:
            with Path(message.config_path).open("rb") as file:
                body = file.read(_MAX_TOML + 1)
        except OSError as error:
            raise InvalidArgument(f"runtime options: {where}: {error.strerror}") from error
    if len(body) > _MAX_TOML:
        raise InvalidArgument(f"runtime options: {where}: longer than {_MAX_TOML} bytes")
    try:
        table = tomllib.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"runtime options: {where}: not TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in _IGNORED:
            continue
        if key in _UNSUPPORTED:
            if value:
                text = f"runtime options: {where}: {key} {value!r} {_NO_CRIU_PATH}"
                raise InvalidArgument(text)
            continue
        if key not in _KEYS:
            known = ", ".join(sorted(_KEYS))
            text = f"runtime options: {where}: {key!r} is not known, expected one of {known}"
            raise InvalidArgument(text)
        field, kind = _KEYS[key]
        if type(value) is not kind:
            text = f"runtime options: {where}: {key}: expected a {kind.__name__}, found {value!r}"
            raise InvalidArgument(text)
        if isinstance(value, int) and not 0 <= value <= _MAX_ID:
            raise InvalidArgument(f"runtime options: {where}: {key}: {value} is not an id")
        values[field] = value
    if not values.get("binary_name"):
        values["binary_name"] = "runc"
    return RuntimeOptions(**values)
