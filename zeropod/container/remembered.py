"""What commands have said while the container was awake, for who repeats them while it sleeps.

With `exec-probes: cached` an exec that succeeded is remembered: what it wrote to stdout and stderr.
Who executes the same asleep is answered with that, and nothing wakes. The same is the same OCI
process to the byte (arguments, environment, user, directory, …) with the same outputs: containerd's
CRI makes it anew from the container's for each exec, so that those of one probe differ in their ids
and FIFOs alone. What failed or was killed, says too much, left its outputs to a daemon, or has a
terminal, a stdin or a logger is not remembered, and wakes.

Nothing is taken from the app's way but the splice: what is remembered is read and written here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from typing import Final

from zeropod.container.events import Stdio
from zeropod.container.logger import is_logger
from zeropod.container.process import Exec
from zeropod.container.stdio import CHUNK, Copy, MakeCopy, open_fifo
from zeropod.errors import InvalidArgument
from zeropod.oci.reaper import Exit

MAX_COMMANDS: Final = 16
MAX_BYTES: Final = 16 << 10
"""Of one command's outputs together."""


class Teed(Copy):
    """A copy that says ``first`` before all else, and remembers in ``said`` what it has read.

    ``said`` is None from the moment on that it would be too much. ``whole``: all was passed on.
    """

    __slots__ = ("_pending", "said", "whole")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, source: int, target: int, first: bytes = b""
    ) -> None:
        super().__init__(loop, source, target)
        self._pending = first
        self.said: bytes | None = b""
        self.whole = False

    def _piece(self) -> int:
        if not self._pending:
            if self.said is None:
                return super()._piece()
            self._pending = os.read(self._source, CHUNK)
            whole = self.said + self._pending
            self.said = whole if len(whole) <= MAX_BYTES else None
        if not self._pending:
            self.whole = True
            return 0
        count = os.write(self._target, self._pending)
        self._pending = self._pending[count:]
        return count

    def _more(self) -> bool:
        return bool(self._pending) or super()._more()


class Recording:
    """One run of a command."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._outputs: list[Teed] = []

    def copy(self, loop: asyncio.AbstractEventLoop, source: int, target: int) -> Teed:
        """A `MakeCopy`."""
        self._outputs.append(Teed(loop, source, target))
        return self._outputs[-1]

    def said(self) -> list[bytes] | None:
        """What each output has said; None where that is not all, or too much."""
        whole = [copy.said for copy in self._outputs if copy.said is not None and copy.whole]
        if len(whole) < len(self._outputs) or sum(map(len, whole)) > MAX_BYTES:
            return None
        return whole


class Remembered:
    """The last results of a container's commands: `MAX_COMMANDS` of them, the latest ones."""

    def __init__(self) -> None:
        self._said: dict[bytes, list[bytes]] = {}

    def begin(self, exec: Exec) -> Recording | None:
        """It is about to run: what it said before is forgotten. None: it will not be remembered."""
        key = _key(exec)
        if key is None:
            return None
        self._said.pop(key, None)
        return Recording(key)

    def end(self, recording: Recording, exit: Exit) -> None:
        """It has ended, and what it wrote has been passed on."""
        said = recording.said()
        self._said.pop(recording.key, None)
        if exit.status != 0 or said is None:
            return
        self._said[recording.key] = said
        if len(self._said) > MAX_COMMANDS:
            del self._said[next(iter(self._said))]

    def answer(self, exec: Exec) -> MakeCopy | None:
        """What says to its FIFOs what the same command has said; None where it must run."""
        key = _key(exec)
        if key is None or key not in self._said:
            return None
        said = iter(self._said[key])
        return lambda loop, source, target: Teed(loop, source, target, next(said))


def _key(exec: Exec) -> bytes | None:
    """The same for the same command; None for one that is not remembered."""
    stdio = exec.stdio
    if stdio.terminal or stdio.stdin or is_logger(stdio.stdout):
        return None
    outputs = bytes([bool(stdio.stdout), bool(stdio.stderr)])
    return hashlib.sha256(outputs + exec.spec).digest()


class Readers:
    """Those of an exec's outputs, who are kept once they are there, until `close`.

    Whoever opens a FIFO to read from it waits for a writer. What is written before he comes, and
    the FIFO closed, is lost, and he waits for ever. A process takes longer to start than he to
    come; an answer does not: containerd opens in threads of its own while it asks for the start.
    Nor may a writer come and go: that is the end of what he reads.
    """

    def __init__(self, stdio: Stdio) -> None:
        self._missing = {path for path in (stdio.stdout, stdio.stderr) if path}
        self._held = contextlib.ExitStack()

    def there(self) -> bool:
        """Whether somebody reads every output, or is about to."""
        for path in sorted(self._missing):
            with contextlib.suppress(InvalidArgument):
                self._held.callback(os.close, open_fifo(path, os.O_WRONLY))
                self._missing.remove(path)
        return not self._missing

    def close(self) -> None:
        self._held.close()
