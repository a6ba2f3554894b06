"""The limits of one container, set by containerd's Update at any moment of its life.

A restore takes its limits from the bundle's config.json, so that is where each update goes, besides
to the runtime while the container runs. One that comes asleep is set once more after the restore,
for the native loop may have fired that a moment before, and the runtime have read the file already.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zeropod.container.state import State

if TYPE_CHECKING:
    from zeropod.container.container import Container


class Limits:
    """Set under the container's lock."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._due = False

    async def update(self, resources: Mapping[str, Any]) -> None:
        """``resources``: OCI LinuxResources. Raises RuntimeFailed; then nothing has changed."""
        if self._container.state_now in (State.SCALED_DOWN, State.WAKING):
            self._due = True
        else:
            await self._set(resources)
        self._container.bundle.update_resources(resources)

    def awake(self) -> None:
        """The container is back: what came meanwhile is set."""
        if self._due:
            self._due = False
            pod = self._container.pod
            pod.tasks.begin(self._set_again(), f"limits {self._container.id}")

    async def _set_again(self) -> None:
        container = self._container
        async with container.lock:
            if container.state_now is State.RUNNING:
                linux = container.bundle.config.get("linux") or {}
                await self._set(linux.get("resources") or {})

    async def _set(self, resources: Mapping[str, Any]) -> None:
        container = self._container
        file = container.bundle.path / "resources.json"
        file.write_text(json.dumps(resources))
        try:
            with contextlib.ExitStack() as hold:
                if container.scaler is not None:  # no dump meanwhile
                    hold.enter_context(container.scaler.inhibit("update"))
                await container.runtime.update(container.id, container.bundle.path, file)
        finally:
            file.unlink(missing_ok=True)
