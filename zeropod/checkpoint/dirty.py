"""Whether a dump may be split: most memory ahead, while the app runs, and then what has changed.

CRIU's pre-dump needs a kernel that marks the pages written to (CONFIG_MEM_SOFT_DIRTY).
"""

from __future__ import annotations

import logging
from typing import Final

from zeropod.checkpoint import criu
from zeropod.oci.reaper import Reaper

log = logging.getLogger(__name__)

_FEATURE: Final = "mem_dirty_track"
_CHECK_S: Final = 30.0


class DirtyTracking:
    """Of this kernel, as CRIU sees it: asked once, and told once where it is missing."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._known: bool | None = None

    async def works(self, id: str) -> bool:
        """``id``: the container that wants it. Raises DeadlineExceeded, OSError."""
        if self._known is None:
            argv = [criu.find() or criu.BINARY, "check", "--feature", _FEATURE]
            done = await self._reaper.run(argv, env=criu.environment(), timeout_s=_CHECK_S)
            self._known = done.status == 0
            if not self._known:
                log.warning(
                    "%s: no pre-dump: this kernel does not track dirty pages (criu check says that"
                    " %s is missing); its dumps are plain ones",
                    id,
                    _FEATURE,
                )
        return self._known
