"""Deletes that take longer than containerd waits.

It gives up after ten seconds and asks again. Then it has to be told what it was not: to a NOT_FOUND
it would publish a second exit, with a status that it makes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from zeropod.api import task_pb2 as pb


class Deletes:
    """Of containers: one at a time for each, and its answer until somebody has got it."""

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Future[pb.DeleteResponse]] = {}
        self._untold: dict[str, pb.DeleteResponse] = {}

    async def once(
        self, id: str, work: Callable[[str], Awaitable[pb.DeleteResponse]]
    ) -> pb.DeleteResponse:
        """What ``work`` says, or what one says that is under way or has not been heard."""
        if (untold := self._untold.pop(id, None)) is not None:
            return untold
        task = self._under_way.get(id)
        if task is None:
            task = self._under_way[id] = asyncio.ensure_future(work(id))
            task.add_done_callback(lambda _: self._under_way.pop(id))
        return await asyncio.shield(task)

    def untold(self, request: pb.DeleteRequest, answer: bytes) -> None:
        """Nobody has heard this answer."""
        if not request.exec_id:
            self._untold[request.id] = pb.DeleteResponse.FromString(answer)

    def forget(self, id: str) -> None:
        """There is a new container of this name."""
        self._untold.pop(id, None)
