"""The shim's log: lines of logrus' text form into the FIFO `log` of the bundle.

containerd reads that FIFO and copies it into its own log. We hold both ends, so that neither a
restart of containerd (no reader: EPIPE) nor one that does not read (a full pipe) is felt: a line
that finds no room is dropped and counted, and the next one that fits says how many were.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from typing import Final

_LEVELS: Final = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-._/@^+]+")
_LINE_MAX: Final = 4096  # PIPE_BUF: lines of several writers do not mix


class FifoHandler(logging.Handler):
    """Writes records to a nonblocking descriptor that belongs to somebody else."""

    def __init__(self, descriptor: int, **fields: str) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.fields = fields
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = [format_record(record, self.fields)]
            if self._dropped:
                lost = f"{self._dropped} log lines were dropped: nobody read them"
                lines.insert(0, format_line(record.created, "warning", lost, self.fields))
            for line in lines:
                os.write(self._descriptor, line)
            self._dropped = 0
        except OSError:
            self._dropped += 1
        except Exception:
            self.handleError(record)


def format_record(record: logging.LogRecord, fields: dict[str, str]) -> bytes:
    """One line for a record; a traceback becomes a field."""
    message = record.getMessage()
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
        fields = {**fields, "trace": trace}
    level = _LEVELS.get(record.levelno, "info")
    return format_line(record.created, level, message, fields)


def format_line(at_s: float, level: str, message: str, fields: dict[str, str]) -> bytes:
    """``time=… level=… msg=… key=value``, at most 4096 bytes with the newline."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))
    stamp = f"{moment}.{int(at_s % 1 * 1e6):06d}000Z"
    pairs = {"time": stamp, "level": level, "msg": message, **fields, "runtime": "zeropod"}
    text = " ".join(f"{key}={_quote(value)}" for key, value in pairs.items())
    return text.encode(errors="replace")[: _LINE_MAX - 1] + b"\n"


def _quote(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def open_fifo(path: str) -> int:
    """The FIFO with both ends, or /dev/null where containerd made none. The caller closes it."""
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


HANDLER: Final = FifoHandler(2)
"""The shim's own: made before the fork, so that a shim has only to fill in who it is."""


def set_up(descriptor: int, *, debug: bool, **fields: str) -> None:
    """Send everything that is logged to ``descriptor``, and with it all that goes to stderr."""
    os.dup2(descriptor, 2)
    HANDLER.fields = fields
    logging.root.handlers[:] = [HANDLER]
    logging.root.setLevel(logging.DEBUG if debug else logging.INFO)
