"""An OCI bundle: its config.json, read once, and the little that is changed in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from zeropod.errors import InvalidArgument


class Bundle:
    """The bundle at ``path``. Raises InvalidArgument where config.json cannot be what it must
    be."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @property
    def rootfs(self) -> Path:
        """Where containerd wants its mounts."""
        return self.path / "rootfs"

    @property
    def root(self) -> Path:
        """The container's root as the runtime finds it: `rootfs`, or a directory elsewhere."""
        return self.path / ((self.config.get("root") or {}).get("path") or "rootfs")

    @cached_property
    def config(self) -> dict[str, Any]:
        file = self.path / "config.json"
        try:
            config = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{file}: {error}") from error
        if not isinstance(config, dict):
            raise InvalidArgument(f"{file}: expected an object")
        return config

    @property
    def annotations(self) -> dict[str, str]:
        return self.config.get("annotations") or {}

    @property
    def cgroups_path(self) -> str:
        return (self.config.get("linux") or {}).get("cgroupsPath") or ""

    def namespace_path(self, kind: str) -> str | None:
        """The path of a namespace that the container joins; "" where it gets one of its own.

        None: it has the host's. ``kind``: network, ipc, uts, pid, mount, cgroup, user.
        """
        for entry in (self.config.get("linux") or {}).get("namespaces") or ():
            if entry.get("type") == kind:
                return entry.get("path") or ""
        return None

    def add_annotations(self, extra: Mapping[str, str]) -> None:
        """Write ``extra`` into config.json, atomically."""
        if not extra:
            return
        self.config["annotations"] = {**self.annotations, **extra}
        self._write()

    def join_network(self, path: str) -> None:
        """Have the container join the network namespace at ``path`` in place of one of its own."""
        for entry in self.config["linux"]["namespaces"]:
            if entry.get("type") == "network":
                entry["path"] = path
        self._write()

    def set_mount_sources(self, sources: Mapping[str, str]) -> None:
        """Have the mounts at these destinations made from other sources; atomically."""
        changed = False
        for mount in self.config.get("mounts") or ():
            source = sources.get(str(mount.get("destination")))
            if source is not None and mount.get("source") != source:
                mount["source"], changed = source, True
        if changed:
            self._write()

    def update_resources(self, resources: Mapping[str, Any]) -> None:
        """Write new limits (OCI LinuxResources) over those in config.json, atomically.

        A restore, or a fresh start, takes its limits from there. As the runtime's own update reads
        it, what is null, zero or empty is no change.
        """
        linux = self.config.setdefault("linux", {})
        linux["resources"] = _merged(linux.get("resources") or {}, resources)
        self._write()

    def _write(self) -> None:
        file = self.path / "config.json"
        fresh = file.with_suffix(".json.new")
        mode = file.stat().st_mode & 0o777
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w") as out:
            json.dump(self.config, out, separators=(",", ":"))
        fresh.rename(file)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        if isinstance(value, Mapping):
            found[key] = _merged(found.get(key) or {}, value)
        elif value:
            found[key] = value
    return found
