"""stdin, stdout and stderr of a process: pipes or a terminal on its side, FIFOs on containerd's.

In place of FIFOs stdout and stderr may have a logger (`logger.py`), which reads the pipes itself.

The copy is splice(2) on the event loop, which never blocks. When the FIFO is full, the copy waits
for room, the pipe fills up, and the app blocks, as under the stock shim; nothing is thrown away.
The FIFOs are opened for reading and writing, so a containerd that goes and comes back means neither
EPIPE nor end of file. For a container's init both ends of each pipe stay open here as long as the
container does, so that a restored process gets the same pipes; for an exec, end of file is the
kernel's word. A process with a terminal has no pipes: the runtime makes the terminal and gives us
its master side (`console.py`), whose end of file is EIO.

    copy: READING (data?) ⇄ WRITING (FIFO has room?) → DONE (end of file, `finish`, `close`)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zeropod.container import console
from zeropod.container.events import Stdio
from zeropod.container.logger import Logger, is_logger
from zeropod.errors import InvalidArgument

CHUNK: Final = 1 << 16
_FLUSH_S: Final = 2.0
_DRAIN_S: Final = 8.0  # with the above as long as the stock shim's Delete waits


class Copy:
    """Moves what arrives in ``source`` to ``target``; owns both. ``done`` is set at the end.

    ``moved`` is called when something has arrived there, and at the end of what was to be moved.
    """

    __slots__ = ("_finishing", "_loop", "_moved", "_paused", "_source", "_target", "done")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: int,
        target: int,
        moved: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._moved = moved
        self._paused = False
        self._finishing = False
        self.done: asyncio.Future[None] = loop.create_future()
        loop.add_reader(source, self._move)

    def _move(self) -> None:
        """Move until there is nothing to read or no room to write.

        A terminal says EIO also when its last writer has written and gone between the kernel's look
        at the buffer and its look for a writer. So one EIO is not the end; two in a row are.
        """
        ended = False
        while True:
            try:
                count = self._piece()
            except BlockingIOError:
                more = self._more()
                if self._finishing and not more:
                    break
                self._wait(for_room=more)
                return
            except OSError as error:
                if error.errno not in _ENDS:
                    raise
                if error.errno == errno.EIO and not ended:
                    ended = True
                    continue
                break
            if count == 0:
                break
            ended = False
            self._tell()
        self.close()
        self._tell()

    def _piece(self) -> int:
        """Move some bytes: how many, 0 at the end of file. BlockingIOError: none, or no room."""
        return os.splice(self._source, self._target, CHUNK, flags=_NONBLOCK)

    def _more(self) -> bool:
        """Whether there is something to move, so that room is what lacks."""
        return readable(self._source)

    def _tell(self) -> None:
        if self._moved:
            self._moved()

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

    def finish(self) -> None:
        """Close when all that is there has been moved: at once, or when there is room for it."""
        if not self.done.done():
            self._finishing = True
            self._move()

    def close(self) -> None:
        """Stop and close both ends. Idempotent."""
        if self.done.done():
            return
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        os.close(self._source)
        os.close(self._target)
        self.done.set_result(None)


_ENDS: Final = (errno.EPIPE, errno.EIO)
"""stdin's process has closed its end; nobody has a terminal's other side open."""
_NONBLOCK: Final = getattr(os, "SPLICE_F_NONBLOCK", 2) | getattr(os, "SPLICE_F_MOVE", 1)


MakeCopy = Callable[[asyncio.AbstractEventLoop, int, int], Copy]


class ProcessIO:
    """The stdio of one process.

    Args:
        keep: init's way: our copies of the process's ends stay open until `finish`.
        owner: (uid, gid) of the pipes.
        open_logger: makes the logger of a URI, where stdout is one.
        on_input: called when data, or the end of it, has come for a stdin that is no terminal.
        copy: what moves an output that is no terminal from (loop, pipe) to its FIFO; owns both.

    Raises:
        InvalidArgument: a path that is no FIFO, or a URI that is no logger.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        paths: Stdio,
        *,
        keep: bool,
        owner: tuple[int, int] = (0, 0),
        open_logger: Callable[[str], Logger],
        on_input: Callable[[], None] | None = None,
        copy: MakeCopy = Copy,
    ) -> None:
        self._on_input = on_input
        self._copy = copy
        self._loop = loop
        self._owner = owner
        self._keep = keep
        self.paths = paths
        self._child = [-1, -1, -1]
        self._outputs: list[Copy] = []
        self._input: Copy | None = None
        self._master = -1
        self._logger = open_logger(paths.stdout) if is_logger(paths.stdout) else None
        if paths.terminal:
            return  # until `connect`
        try:
            self._open(paths)
        except BaseException:
            self.close()
            raise

    def connect(self, master: int) -> None:
        """The process's terminal is there. Takes its master side."""
        self._master = master
        if self._logger is not None:
            stdout, stderr = self._logger.take()
            os.close(stderr)
            self._outputs.append(Copy(self._loop, _copied(master), stdout))
        elif self.paths.stdout:
            self._outputs.append(Copy(self._loop, _copied(master), open_fifo(self.paths.stdout)))
        if self.paths.stdin:
            self._input = Copy(self._loop, open_fifo(self.paths.stdin), _copied(master))

    def resize(self, width: int, height: int) -> None:
        """Of the terminal, in characters; does nothing without one."""
        if self._master >= 0:
            console.resize(self._master, width, height)

    def _open(self, paths: Stdio) -> None:
        if paths.stdin:
            fifo = open_fifo(paths.stdin)
            read, write = self._pipe()
            os.set_blocking(write, False)
            self._child[0] = read
            self._input = Copy(self._loop, fifo, write, self._on_input)
        if self._logger is not None:
            self._child[1:] = self._logger.take()
            return
        for number, path in ((1, paths.stdout), (2, paths.stderr)):
            if path:
                fifo = open_fifo(path)
                read, write = self._pipe()
                os.set_blocking(read, False)
                self._child[number] = write
                self._outputs.append(self._copy(self._loop, read, fifo))

    def _pipe(self) -> tuple[int, int]:
        read, write = os.pipe2(os.O_CLOEXEC)
        if self._owner != (0, 0):
            os.fchown(read, *self._owner)  # a pipe has one inode
        return read, write

    async def ready(self) -> None:
        """Returns when whoever is to read the outputs does. Raises as `Logger.ready`."""
        if self._logger is not None:
            await self._logger.ready()

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

        A process it left behind may hold the pipe open for ever, and a reader may be slow or gone:
        past two seconds the news of the end wait no longer. What is left is passed on as there is
        room for it, until `drain`.
        """
        self._close_child()
        if await self._moved(_FLUSH_S):
            if self._logger is not None:
                await self._logger.finish(_FLUSH_S)
            self.close()

    async def drain(self) -> None:
        """Close after what `finish` has left, or after eight seconds: it is to be deleted."""
        await self._moved(_DRAIN_S)
        self.close()

    async def _moved(self, limit_s: float) -> bool:
        """Whether all outputs have ended."""
        waiting = {copy.done for copy in self._outputs if not copy.done.done()}
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=limit_s)
        return not waiting

    def close(self) -> None:
        """Close everything at once. Idempotent."""
        self._close_child()
        for copy in self._outputs:
            copy.close()
        if self._input is not None:
            self._input.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        if self._logger is not None:
            self._logger.close()

    def _close_child(self) -> None:
        for number, fd in enumerate(self._child):
            if fd >= 0:
                os.close(fd)
                self._child[number] = -1


@contextlib.contextmanager
def console_for(io: ProcessIO, bundle: Path, name: str) -> Iterator[str]:
    """Around the runtime's run: the socket for the terminal, "" where the process has none.

    At the end the terminal is connected.
    """
    if not io.paths.terminal:
        yield ""
        return
    waiting = console.ConsoleSocket(bundle, name)
    try:
        yield waiting.path
        io.connect(waiting.take_master())
    finally:
        waiting.close()


def open_fifo(uri: str, way: int = os.O_RDWR) -> int:
    """Open one of containerd's FIFOs so that its other end may come and go.

    With O_WRONLY as ``way`` it must be there. Raises InvalidArgument.
    """
    scheme, colon, rest = uri.partition("://")
    if colon and scheme != "fifo":
        raise InvalidArgument(f"stdio {uri}: expected a FIFO, binary:// or file://")
    path = rest if colon else uri
    try:
        fd = os.open(path, way | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"stdio {path}: {error.strerror}") from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"stdio {path}: not a FIFO")
    return fd


def readable(fd: int) -> bool:
    """Whether something is there to be read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(found & select.POLLIN for _, found in poll.poll(0))


def _copied(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
