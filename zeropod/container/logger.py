"""Loggers: a process that takes what a container's process writes, in place of containerd's FIFOs.

    binary:///path/to/program?key=value   run as `program key value`, with CONTAINER_ID and
                                          CONTAINER_NAMESPACE as its environment, stdout's pipe as
                                          descriptor 3, stderr's as 4; it closes 5 when it is ready
    file:///path/to/log                   appended to, made with its directory where it is missing

Both are containerd's forms. A file's logger is `cat`, so that a slow disk holds up neither the
event loop nor, before a pipe is full, the container. A logger sees the end of file when the process
and all that it has left are gone, and may take its time then. One that dies earlier kills nobody:
the pipes stay open here, so the app blocks when they are full.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from zeropod._fastpath._spawn import spawn
from zeropod.errors import DeadlineExceeded, InvalidArgument
from zeropod.oci.reaper import Exit, Reaper

log = logging.getLogger(__name__)

_READY_S: Final = 30.0
_END_S: Final = 10.0
_TERMINATE_S: Final = 2.0
_SCRIPT: Final = 'exec "$0" "$@" 3<&0 4<&1 5>&2 </dev/null >/dev/null 2>&1'
"""Moves what spawn gives as 0, 1 and 2 to where a logger expects it."""


def is_logger(uri: str) -> bool:
    """Whether ``uri`` names a logger; else it is a FIFO's."""
    return uri.startswith(("binary:", "file:"))


class Logger:
    """Owns the pipes and follows the process. Made in the event loop's thread.

    Args:
        id: what CONTAINER_ID says: the container's, or the exec's.
        owner: (uid, gid) of the pipes.

    Raises:
        InvalidArgument: the URI names nothing that could log; says why.
    """

    def __init__(
        self, reaper: Reaper, uri: str, *, id: str, namespace: str, owner: tuple[int, int] = (0, 0)
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reaper = reaper
        self._uri = uri
        self._owner = owner
        self._reads: list[int] = []
        self._writes: list[int] = []
        self._ready = -1
        try:
            parts = urlsplit(uri)
            self._appends = parts.scheme == "file"
            path = unquote(parts.path)
            if not path.startswith("/"):
                raise InvalidArgument(f"stdio {uri}: expected an absolute path")
            if self._appends:
                self._pid = self._append_to(Path(path))
            else:
                environ = {"CONTAINER_ID": id, "CONTAINER_NAMESPACE": namespace}
                self._pid = self._run(path, parts.query, environ)
        except BaseException as error:
            self._close_pipes()
            if isinstance(error, OSError):
                raise InvalidArgument(f"stdio {uri}: {error.strerror}") from error
            raise
        self._exit = reaper.watch(self._pid)
        self._exit.add_done_callback(self._ended)

    def take(self) -> tuple[int, int]:
        """The pipes' ends for stdout and stderr; the caller closes them. Once."""
        stdout, stderr = self._writes
        self._writes = []
        return stdout, stderr

    async def ready(self) -> None:
        """Returns when the logger says that it reads.

        Raises:
            DeadlineExceeded: it says nothing.
        """
        if self._ready < 0:
            return
        said = asyncio.Event()
        self._loop.add_reader(self._ready, said.set)
        try:
            async with asyncio.timeout(_READY_S):
                await said.wait()
        except TimeoutError:
            text = f"stdio {self._uri}: is not ready after {_READY_S:.0f} s"
            raise DeadlineExceeded(text) from None
        finally:
            self._loop.remove_reader(self._ready)
            os.close(self._ready)
            self._ready = -1

    async def finish(self, limit_s: float) -> None:
        """Wait until a file has all that was written, for so long and no longer.

        A program may do what it likes after the end of file: it is not waited for.
        """
        if self._appends:
            await asyncio.wait([self._exit], timeout=limit_s)

    def close(self) -> None:
        """Close all pipes. A logger that does not end by that is told to, and then made to.

        Idempotent.
        """
        self._close_pipes()
        if not self._exit.done():
            self._loop.call_later(_END_S, self._signal, signal.SIGTERM)
            self._loop.call_later(_END_S + _TERMINATE_S, self._signal, signal.SIGKILL)

    def _append_to(self, path: Path) -> int:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
        file = os.open(path, flags, 0o644)
        try:
            read = self._pipe()
            self._writes.append(os.dup(self._writes[0]))
            # Not our environment: the mark in it would have the logger killed with a dead shim.
            environ = {"PATH": os.environ.get("PATH", os.defpath)}
            return spawn(["cat"], env=environ, stdio=(read, file, -1))
        finally:
            os.close(file)

    def _run(self, path: str, query: str, environ: dict[str, str]) -> int:
        if not os.access(path, os.X_OK):
            number = errno.EACCES if Path(path).exists() else errno.ENOENT
            raise OSError(number, os.strerror(number))
        arguments: dict[str, str] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            arguments.setdefault(key, value)
        words = [word for pair in arguments.items() for word in pair]
        self._ready, told = os.pipe2(os.O_CLOEXEC)
        try:
            argv = ["/bin/sh", "-c", _SCRIPT, path, *words]
            return spawn(argv, env=environ, stdio=(self._pipe(), self._pipe(), told))
        finally:
            os.close(told)

    def _pipe(self) -> int:
        read, write = os.pipe2(os.O_CLOEXEC)
        self._reads.append(read)
        self._writes.append(write)
        if self._owner != (0, 0):
            os.fchown(read, *self._owner)  # a pipe has one inode
        return read

    def _close_pipes(self) -> None:
        for fd in (*self._reads, *self._writes):
            os.close(fd)
        self._reads, self._writes = [], []
        if self._ready >= 0:
            self._loop.remove_reader(self._ready)
            os.close(self._ready)
            self._ready = -1

    def _ended(self, exit: asyncio.Future[Exit]) -> None:
        if exit.cancelled():
            return
        self._reaper.reap(self._pid)
        if exit.result().status:
            status = exit.result().status
            log.error("logger %s: ended with status %d", self._uri, status)

    def _signal(self, number: int) -> None:
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
