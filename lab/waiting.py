"""Waiting for a state of another process that no descriptor announces: asked for, and bounded."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")
_INTERVAL_S = 0.01
SLOWNESS = float(os.environ.get("ZEROPOD_SLOWNESS", "1"))
"""How much longer than elsewhere everything may take: an emulated processor is slow."""


def until(
    what: str,
    ask: Callable[[], _Found | None],
    timeout: float = 120,
    *,
    interval: float = _INTERVAL_S,
) -> _Found:
    """Ask until the answer is neither None nor False, and return it.

    ``interval``: seconds between two questions.
    The timeout is multiplied by `SLOWNESS`.
    Raises TimeoutError that says what was waited for, with the last answer's exception as cause.
    """
    timeout *= SLOWNESS
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s still no {what}")
        pause.wait(interval)
