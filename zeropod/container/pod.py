"""What the containers of one shim share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from zeropod.activator.activator import PodActivator
from zeropod.config import NodeSettings, Settings
from zeropod.container.events import Event
from zeropod.container.report import Feed
from zeropod.container.tasks import Tasks
from zeropod.oci.reaper import Reaper
from zeropod.oci.runtime import Runtime, RuntimeOptions

if TYPE_CHECKING:
    from zeropod.container.container import Container
    from zeropod.container.scaler import Scaler


class Pod:
    """The surroundings of a shim's containers.

    Args:
        namespace: containerd's.
        emit: where the containers' events go, in order.
        make_scaler: what scales a container, or None for a pod without scaling (tests).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        namespace: str,
        node: NodeSettings,
        emit: Callable[[Event], None],
        make_scaler: Callable[[Container], Scaler] | None = None,
    ) -> None:
        self.loop = loop
        self.namespace = namespace
        self.node = node
        self.emit = emit
        self.make_scaler = make_scaler
        self.reaper = Reaper(loop)
        self.feed = Feed()
        self._activators: dict[str, PodActivator] = {}
        self.tasks = Tasks()

    def runtime(self, options: RuntimeOptions) -> Runtime:
        return Runtime(self.reaper, options, self.namespace)

    def activator(self, netns: str, settings: Settings) -> PodActivator:
        """The native activator of a network namespace, opened when it is first asked for.

        ``settings``: of the container that asks.

        Raises:
            ActivatorError: it cannot be set up here; names the cause.
        """
        if netns not in self._activators:
            self._activators[netns] = PodActivator.open(
                netns,
                count_loopback=not self.node.tracker_ignore_localhost,
                settings=settings,
                loop=self.loop,
            )
        return self._activators[netns]

    async def close(self) -> None:
        """Close the activators and end every task. Idempotent."""
        await self.tasks.end()
        for activator in self._activators.values():
            activator.close()
        self._activators.clear()
        self.reaper.close()
