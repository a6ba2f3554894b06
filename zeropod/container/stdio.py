"""stdin, stdout and stderr of a process: pipes of ours on its side, FIFOs on containerd's.

The copy is splice(2) on the event loop, which never blocks. When the FIFO is full, the copy waits
for room, the pipe fills up, and the app blocks, as under the stock shim; nothing is thrown away.
The FIFOs are opened for reading and writing, so a containerd that goes and comes back means neither
EPIPE nor end of file. For a container's init both ends of each pipe stay open here as long as the
container does, so that a restored process gets the same pipes; for an exec, end of file is the
kernel's word.

    copy: READING (pipe has data?) ⇄ WRITING (FIFO has room?) → DONE (end of file, or `close`)
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Callable
from typing import Final

from zeropod.container.events import Stdio
from zeropod.errors import InvalidArgument, Unimplemented

_CHUNK: Final = 1 << 16
_FLUSH_S: Final = 2.0


class Copy:
    """Moves what arrives in ``source`` to ``target``; owns both. ``done`` is set at the end."""

    __slots__ = ("_ended", "_loop", "_paused", "_source", "_target", "done")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: int,
        target: int,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._ended = ended
        self._paused = False
        self.done: asyncio.Future[None] = loop.create_future()
        loop.add_reader(source, self._move)

    def _move(self) -> None:
        """Move until there is nothing to read or no room to write."""
        while True:
            try:
                count = os.splice(self._source, self._target, _CHUNK, flags=_NONBLOCK)
            except BlockingIOError:
                self._wait(for_room=pending(self._source) > 0)
                return
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                count = 0  # stdin's process has closed its end
            if count == 0:
                self.close()
                return

    def _wait(self, *, for_room: bool) -> None:
        if for_room == self._paused:
            return
        self._paused = for_room
        if for_room:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._move)
        else:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._move)

    def empty(self) -> bool:
        return self.done.done() or pending(self._source) == 0

    def finish(self) -> None:
        """Move what is there now, then close, unless there is no room for it."""
        if not self.done.done():
            self._move()
        if self.empty():
            self.close()

    def close(self) -> None:
        """Stop and close both ends. Idempotent."""
        if self.done.done():
            return
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        os.close(self._source)
        os.close(self._target)
        self.done.set_result(None)
        if self._ended:
            self._ended()


_NONBLOCK: Final = getattr(os, "SPLICE_F_NONBLOCK", 2) | getattr(os, "SPLICE_F_MOVE", 1)


class ProcessIO:
    """The stdio of one process.

    Args:
        keep: init's way: our copies of the process's ends stay open until `finish`.

    Raises:
        InvalidArgument: a path that is no FIFO. Unimplemented: a terminal or a logging URI.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, paths: Stdio, *, keep: bool) -> None:
        if paths.terminal:
            raise Unimplemented("terminals are not supported by this version")
        self._loop = loop
        self._keep = keep
        self._child = [-1, -1, -1]
        self._outputs: list[Copy] = []
        self._input: Copy | None = None
        try:
            self._open(paths)
        except BaseException:
            self.close()
            raise

    def _open(self, paths: Stdio) -> None:
        if paths.stdin:
            fifo = open_fifo(paths.stdin)
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(write, False)
            self._child[0] = read
            self._input = Copy(self._loop, fifo, write)
        for number, path in ((1, paths.stdout), (2, paths.stderr)):
            if path:
                fifo = open_fifo(path)
                read, write = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(read, False)
                self._child[number] = write
                self._outputs.append(Copy(self._loop, read, fifo))

    @property
    def child_fds(self) -> tuple[int, int, int]:
        """The process's ends, -1 for /dev/null. Valid for init until `finish`."""
        return self._child[0], self._child[1], self._child[2]

    def started(self) -> None:
        """The process has its ends: an exec's are closed here."""
        if not self._keep:
            self._close_child()

    def close_stdin(self) -> None:
        """End of file for the process, after what is in the FIFO already. Idempotent."""
        if self._input is not None:
            self._input.finish()

    async def finish(self) -> None:
        """The process has ended: pass on all it wrote, then close.

        A process it left behind may hold the pipe open for ever, and a reader may be gone: past
        two seconds what is left in the pipe is given up.
        """
        self._close_child()
        waiting = [copy.done for copy in self._outputs if not copy.done.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=_FLUSH_S)
        self.close()

    def close(self) -> None:
        """Close everything at once. Idempotent."""
        self._close_child()
        for copy in self._outputs:
            copy.close()
        if self._input is not None:
            self._input.close()

    def _close_child(self) -> None:
        for number, fd in enumerate(self._child):
            if fd >= 0:
                os.close(fd)
                self._child[number] = -1


def open_fifo(path: str) -> int:
    """Open one of containerd's FIFOs so that its other end may come and go."""
    if "://" in path:
        scheme = path.partition("://")[0]
        raise Unimplemented(f"stdio {path}: {scheme}:// loggers are not supported by this version")
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"stdio {path}: {error.strerror}") from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"stdio {path}: not a FIFO")
    return fd


def pending(fd: int) -> int:
    """Bytes that wait in a pipe or FIFO."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])
