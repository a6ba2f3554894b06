"""Tasks that nobody waits for: kept until they end, and a failure of one is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Tasks(set[asyncio.Task[Any]]):
    """Those under way."""

    def begin(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> list[asyncio.Task[Any]]:
        """Cancel all of them, but for the one that asks. Returns them."""
        others = [task for task in self if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        return others

    async def end(self) -> None:
        """Cancel them, and return when they have ended."""
        if others := self.cancel():
            await asyncio.wait(others)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("task %s failed", task.get_name(), exc_info=error)
