"""How a container gets its scaler: with the engines and the activator of its pod."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from zeropod._fastpath._activator import Event
from zeropod.checkpoint import image
from zeropod.checkpoint.engine import Engine
from zeropod.checkpoint.fresh import FreshEngine
from zeropod.checkpoint.image import ImageStore
from zeropod.checkpoint.runc import RuncEngine
from zeropod.container.reserve import Reserved
from zeropod.container.scaler import Scaler
from zeropod.container.sleeper import Group

if TYPE_CHECKING:
    from zeropod.container.container import Container


def make_scaler(container: Container) -> Scaler:
    """A scaler with the engines and the activator of the container's pod."""
    pod = container.pod
    fresh = FreshEngine(container.runtime, container.reaper)
    engine: Engine = fresh
    if not container.settings.disable_checkpointing:
        engine = RuncEngine(container.runtime, container.reaper, container.bundle)

    def open_group(found: frozenset[int], on_event: Callable[[Event], None]) -> Group:
        activator = pod.activator(container.netns, container.settings)
        return activator.add(sorted(found), container.settings, on_event)

    def open_store() -> ImageStore:
        if dead := image.condemn(pod.node.image_root):
            pod.tasks.begin(image.remove(container.reaper, dead), "remove images")
        return ImageStore.open(pod.node.image_root, f"{pod.namespace}.{container.id}")

    return Scaler(
        container,
        engine,
        fresh,
        open_group=open_group,
        open_store=open_store,
        reserve=partial(Reserved.take, container.netns),
    )
