"""An OCI bundle: what the shim wants of its config.json, and the little that is changed in it.

The file is large, most of it seccomp rules, and belongs to the runtime. A shim that kept it whole
would have it in memory for as long as the pod lives. So it is read when it is needed, what is asked
for again and again is kept, and whatever is changed is changed in the file as it is then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropod.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class _Kept:
    """``namespaces``: kind → path, "" where the container gets one of its own.

    ``user``: (uid, gid) of the first process as the host sees it where it is in a user namespace.
    """

    root: str
    annotations: dict[str, str]
    cgroups_path: str
    namespaces: dict[str, str]
    terminal: bool
    user: tuple[int, int]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Kept:
        linux, process = config.get("linux") or {}, config.get("process") or {}
        user = process.get("user") or {}
        return cls(
            (config.get("root") or {}).get("path") or "rootfs",
            config.get("annotations") or {},
            linux.get("cgroupsPath") or "",
            {ns.get("type", ""): ns.get("path") or "" for ns in linux.get("namespaces") or ()},
            bool(process.get("terminal")),
            (
                _outside(linux.get("uidMappings"), user.get("uid", 0)),
                _outside(linux.get("gidMappings"), user.get("gid", 0)),
            ),
        )


class Bundle:
    """The bundle at ``path``. Raises InvalidArgument where config.json cannot be what it must
    be."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._found: _Kept | None = None

    @property
    def rootfs(self) -> Path:
        """Where containerd wants its mounts."""
        return self.path / "rootfs"

    @property
    def root(self) -> Path:
        """The container's root as the runtime finds it: `rootfs`, or a directory elsewhere."""
        return self.path / self._kept.root

    @property
    def annotations(self) -> dict[str, str]:
        return self._kept.annotations

    @property
    def cgroups_path(self) -> str:
        return self._kept.cgroups_path

    @property
    def terminal(self) -> bool:
        """Whether init has a terminal."""
        return self._kept.terminal

    @property
    def mapped_user(self) -> tuple[int, int]:
        """(uid, gid) of the first process as the host sees it; (0, 0) without a user namespace."""
        return self._kept.user

    def namespace_path(self, kind: str) -> str | None:
        """The path of a namespace that the container joins; "" where it gets one of its own.

        None: it has the host's. ``kind``: network, ipc, uts, pid, mount, cgroup, user.
        """
        return self._kept.namespaces.get(kind)

    @property
    def config(self) -> dict[str, Any]:
        """All of config.json, read anew each time: to be looked at and let go."""
        file = self.path / "config.json"
        try:
            config = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{file}: {error}") from error
        if not isinstance(config, dict):
            raise InvalidArgument(f"{file}: expected an object")
        return config

    def add_annotations(self, extra: Mapping[str, str]) -> None:
        """Write ``extra`` into config.json, atomically."""
        if not extra:
            return
        config = self.config
        config["annotations"] = {**(config.get("annotations") or {}), **extra}
        self._write(config)

    def join_network(self, path: str) -> None:
        """Have the container join the network namespace at ``path`` in place of one of its own."""
        config = self.config
        for entry in config["linux"]["namespaces"]:
            if entry.get("type") == "network":
                entry["path"] = path
        self._write(config)

    def set_mount_sources(self, sources: Mapping[str, str]) -> None:
        """Have the mounts at these destinations made from other sources; atomically."""
        config = self.config
        for mount in config.get("mounts") or ():
            if (source := sources.get(str(mount.get("destination")))) is not None:
                mount["source"] = source
        self._write(config)

    def update_resources(self, resources: Mapping[str, Any]) -> None:
        """Write new limits (OCI LinuxResources) over those in config.json, atomically.

        A restore, or a fresh start, takes its limits from there. As the runtime's own update reads
        it, what is null, zero or empty is no change.
        """
        config = self.config
        linux = config.setdefault("linux", {})
        linux["resources"] = _merged(linux.get("resources") or {}, resources)
        self._write(config)

    @property
    def _kept(self) -> _Kept:
        if self._found is None:
            self._found = _Kept.of(self.config)
        return self._found

    def _write(self, config: dict[str, Any]) -> None:
        file = self.path / "config.json"
        fresh = file.with_suffix(".json.new")
        mode = file.stat().st_mode & 0o777
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as out:
            out.write(json.dumps(config, separators=(",", ":")).encode())
        fresh.rename(file)
        self._found = _Kept.of(config)


def _outside(mappings: Iterable[Mapping[str, int]] | None, id: int) -> int:
    """An id of a user namespace as the host sees it; 0 where nothing maps it."""
    for entry in mappings or ():
        first, size = int(entry["containerID"]), int(entry["size"])
        if first <= id < first + size:
            return int(entry["hostID"]) + id - first
    return 0


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        if isinstance(value, Mapping):
            found[key] = _merged(found.get(key) or {}, value)
        elif value:
            found[key] = value
    return found
