"""The containers of one shim, by id."""

from __future__ import annotations

from collections.abc import Iterator

from zeropod.container.container import Container
from zeropod.errors import AlreadyExists, NotFound


class Registry:
    """An id is taken from the moment its Create begins, so that two at once cannot both win."""

    def __init__(self) -> None:
        self._containers: dict[str, Container | None] = {}

    def __len__(self) -> int:
        return len(self._containers)

    def __iter__(self) -> Iterator[Container]:
        return iter([found for found in self._containers.values() if found is not None])

    def reserve(self, id: str) -> None:
        """Raises AlreadyExists."""
        if id in self._containers:
            raise AlreadyExists(f"container {id} already exists")
        self._containers[id] = None

    def add(self, container: Container) -> None:
        """Fill the place that `reserve` took."""
        self._containers[container.id] = container

    def remove(self, id: str) -> None:
        self._containers.pop(id, None)

    def get(self, id: str) -> Container:
        """Raises NotFound, also for one whose Create is still under way."""
        container = self._containers.get(id)
        if container is None:
            raise NotFound(f"container {id} not found")
        return container
