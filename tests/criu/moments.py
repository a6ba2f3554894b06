"""CRIU stands still at a moment of its own choosing until it is let go.

The moments are those at which it runs its action scripts: ``pre-dump`` (nothing is frozen yet),
``post-dump`` (all is written, all is frozen), ``post-setup-namespaces`` (of a restore: nothing has
run), ``post-resume`` (the app runs).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zeropod.checkpoint import criu

if TYPE_CHECKING:
    import pytest

_SCRIPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = {moment} ] && mkdir {folder}/once || exit 0
echo > {folder}/reached
read -r _ < {folder}/go
"""
_LIMIT_S = 60


class Moments:
    """One moment of CRIU's next run, named by `stand_at`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._script = folder / "script"
        self._script.write_text("#!/bin/sh\n")
        self._script.chmod(0o755)
        for name in ("reached", "go"):
            os.mkfifo(folder / name)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._reached, self._go = (os.open(folder / name, flags) for name in ("reached", "go"))
        self._config = criu.config

    def config(self, *external: object) -> str:
        return f"{self._config(*external)}action-script {self._script}\n"  # type: ignore[arg-type]

    def stand_at(self, moment: str) -> None:
        fresh = self._script.with_suffix(".new")
        fresh.write_text(_SCRIPT.format(moment=moment, folder=self._folder))
        fresh.chmod(0o755)
        fresh.rename(self._script)

    async def reached(self) -> None:
        """Returns when CRIU stands there."""
        loop = asyncio.get_running_loop()
        told = loop.create_future()
        loop.add_reader(self._reached, lambda: told.done() or told.set_result(None))
        try:
            await asyncio.wait_for(told, _LIMIT_S)
        finally:
            loop.remove_reader(self._reached)

    def go_on(self) -> None:
        os.write(self._go, b"\n")

    def close(self) -> None:
        """Whoever still stands there goes on: he reads the end of the pipe."""
        os.close(self._reached)
        os.close(self._go)

    @classmethod
    def made(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Moments:
        moments = cls(folder)
        monkeypatch.setattr(criu, "config", moments.config)
        return moments
